"""Held-out phrasings: one wording of a trained record, with its id and answers, and no question twice."""

import pytest

from llm_qa.console import UserError
from llm_qa.data.phrasings import hold_out_phrasings
from llm_qa.data.records import QARecord

RECORDS = [
    QARecord("a", ("가?", "나?", "다?"), ("하나",)),
    QARecord("b", ("라?",), ("둘",)),
    QARecord("c", ("마?", "바?"), ("셋", "넷")),
    QARecord("d", ("사?", "라 ?"), ("다섯",)),  # its second question is asked by b too
]


def test_one_wording_of_each_record_with_several_is_held_out():
    train, test = hold_out_phrasings(RECORDS, seed=0)
    assert [record.id for record in train] == ["a", "b", "c", "d"]
    assert [record.id for record in test] == ["a", "c", "d"]
    for record in test:
        (question,) = record.questions
        whole = next(r for r in RECORDS if r.id == record.id)
        left = next(r for r in train if r.id == record.id)
        assert {question, *left.questions} == set(whole.questions)
        assert question not in left.questions
        assert record.answers == left.answers == whole.answers
    assert test[2].questions == ("사?",), "the other wording is trained on by another record"
    assert train[1] == RECORDS[1]


def test_the_seed_chooses():
    chosen = {hold_out_phrasings(RECORDS, seed)[1][0].questions for seed in range(20)}
    assert chosen == {("가?",), ("나?",), ("다?",)}
    assert hold_out_phrasings(RECORDS, 3) == hold_out_phrasings(RECORDS, 3)


def test_without_a_second_wording_there_is_nothing_to_hold_out():
    with pytest.raises(UserError, match="is asked in two ways, so --test phrasings has nothing to hold out"):
        hold_out_phrasings(RECORDS[1:2], 0)
    with pytest.raises(UserError, match="nothing to hold out"):
        hold_out_phrasings([QARecord("a", ("가?", "가 ?"), ("하나",))], 0)
