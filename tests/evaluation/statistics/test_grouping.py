"""Kinds of questions, lengths of answers, closeness."""

import pytest

from evaluation.fixtures import make_rows
from llm_qa.evaluation.statistics.grouping import (
    CLOSE,
    CLOSENESS,
    LENGTH_NAMES,
    NEW,
    answer_length,
    group_rows,
    question_type,
)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("결로는 왜 생기나요?", "why"),
        ("합지와 실크벽지의 차이는 무엇인가요?", "difference"),
        ("벽지는 어떻게 바르나요?", "how (어"),
        ("양생은 며칠 걸리나요?", "how much"),
        ("누가 하자를 보수하나요?", "who"),
        ("몰딩이란 무엇인가요?", "what"),
        ("마루도 보수가 되나요?", "yes or no"),
        ("몰딩 시공을 설명해 주세요.", "request"),
    ],
)
def test_questions_by_their_interrogative(question, kind):
    assert question_type(question).startswith(kind)


def test_lengths_are_the_mean_of_the_references():
    assert answer_length(["가" * 20]) == "1 to 20 characters"
    assert answer_length(["가" * 10, "가" * 40]) == "21 to 50 characters"
    assert answer_length(["가" * 1000]) == LENGTH_NAMES[-1] == "over 200 characters"


def test_groups_hold_every_row_once_and_closeness_only_where_it_was_looked_up():
    rows = make_rows(tuned=True)
    grouped = group_rows(rows)
    assert CLOSENESS not in grouped
    for groups in grouped.values():
        assert sorted(i for places in groups.values() for i in places) == list(range(len(rows)))
    rows[0]["closest_training"] = {"question": 0.2, "answer": 0.8}
    rows[1]["closest_training"] = {"question": 0.79, "answer": 0.1}
    assert group_rows(rows)[CLOSENESS] == {CLOSE: [0], NEW: [1]}


def test_lengths_stand_in_their_order():
    rows = make_rows(tuned=True)
    for i, row in enumerate(rows):
        row["references"] = ["가" * (10, 60, 300, 30)[i % 4]] * 2
    assert list(group_rows(rows)["answer length"]) == [LENGTH_NAMES[i] for i in (0, 1, 2, 4)]
