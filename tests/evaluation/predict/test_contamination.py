"""What is close to the training texts, and the answers that memorising would copy."""

import pytest

from llm_qa.data.groups import group_names
from llm_qa.data.records import QARecord
from llm_qa.evaluation.metrics.measures import chrf
from llm_qa.evaluation.predict.contamination import (
    CharacterIndex,
    character_pairs,
    contamination,
    nearest_answers,
    nearest_rows,
    with_closest,
)
from llm_qa.evaluation.predict.predictions import question_rows
from llm_qa.evaluation.statistics.scoring import score_predictions

TRAINING = [
    QARecord("T0", ("벽지가 들뜨는 이유는 무엇인가요?",), ("습기 때문입니다.", "풀이 모자랍니다.")),
    QARecord("T1", ("마루는 언제 까나요?", "마루 시공 시기는?"), ("7일 말린 뒤 깝니다.",)),
    QARecord("T2", ("결로는 어떻게 줄이나요?",), ("환기로 줄입니다.",)),
]


def test_similarity_by_hand():
    """가나다 has ⊢가 가나 나다 다⊣, 가나라 shares two of its four: 2·2 / (4 + 4)."""
    assert len(character_pairs("가나다")) == 4
    assert CharacterIndex(["가나라", "가 나,다!", "하"]).similarities("가나다").tolist() == [0.5, 1.0, 0.0]
    assert CharacterIndex(["벽지"]).similarities("").tolist() == [0.0]


def test_close_questions_and_answers_are_marked_and_scored_without():
    records = [
        QARecord("A", ("벽지가 들뜨는 이유는 무엇인가요 ?", "왜 그럴까요?"), ("전혀 다른 답입니다",)),
        QARecord("B", ("타일은 무엇으로 붙이나요?",), ("환기로 줄입니다!", "압착 시멘트로 붙입니다.")),
        QARecord("C", ("줄눈은 무슨 색이 좋나요?",), ("밝은 회색이 무난합니다.",)),
    ]
    rows = with_closest(question_rows(records, group_names(records)), TRAINING)
    assert [row["closest_training"]["question"] == 1 for row in rows] == [True, False, False, False]
    assert [row["closest_training"]["answer"] == 1 for row in rows] == [False, False, True, False]
    counts = contamination(rows)
    assert counts["trained_on_questions"] == 1, "equal but for a space"
    assert (counts["close_questions"], counts["close_answers"], counts["close_records"]) == (1, 1, 2)

    scores = score_predictions(nearest_rows(rows, TRAINING))
    closeness = scores["groups"]["closeness"]
    assert closeness["close to a training text"]["questions"] == 2
    assert closeness["not close"]["questions"] == 2


def test_the_nearest_answer_is_that_of_the_slow_search():
    questions = ["마루 시공은 언제 하나요?", "결로를 줄이려면?", "벽지 들뜸의 이유는?"]
    known = [(text, record.answers[0]) for record in TRAINING for text in record.questions]
    slow = [max(known, key=lambda pair, q=question: chrf(q, [pair[0]]))[1] for question in questions]
    assert nearest_answers(questions, TRAINING) == slow == [
        "7일 말린 뒤 깝니다.",
        "환기로 줄입니다.",
        "습기 때문입니다.",
    ]  # fmt: skip


def test_copied_answers_are_predictions_without_bits():
    row = nearest_rows(question_rows([TRAINING[1]], {"T1": "T1"}), TRAINING)[0]
    assert row["prediction"] == "7일 말린 뒤 깝니다."
    scores = score_predictions([row])
    assert scores["metrics"]["character_f1"]["value"] == 1.0
    assert scores["metrics"]["bits_per_character"]["value"] is None
    assert scores["references_without_bits"] == 1


def test_a_question_without_a_shared_letter_is_answered_too():
    assert nearest_answers(["qqq"], TRAINING) == [pytest.approx(TRAINING[0].answers[0])]


def test_the_same_question_of_another_passage_was_not_trained_on():
    training = [QARecord("T", ("언제인가요?",), ("7일",), context="마루는 7일 말린 뒤 깝니다.")]
    asked = [
        QARecord("A", ("언제인가요?",), ("3월",), context=context) for context in ("3월입니다.", training[0].context)
    ]
    rows = [with_closest(question_rows([one], {"A": "A"}), training)[0] for one in asked]
    assert [row["closest_training"]["trained_on"] for row in rows] == [False, True]


@pytest.mark.parametrize("system", ["", "너는 상담원이다.", "짧게 답한다."])
def test_another_system_message_makes_no_other_question(system):
    said = "너는 상담원이다."
    training = [QARecord("T", ("언제인가요?",), ("7일",), context=f"{said}\n\n마루는 7일 말립니다.", system=said)]
    passages = ("마루는 7일 말립니다.", "3월입니다.")
    asked = [QARecord("A", ("언제인가요?",), ("답",), "", f"{system}\n\n{text}".strip(), system) for text in passages]
    rows = [with_closest(question_rows([one], {"A": "A"}), training)[0] for one in asked]
    assert [row["closest_training"]["trained_on"] for row in rows] == [True, False]
