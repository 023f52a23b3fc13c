"""Training answers put before a question: which ones, never a record's own, and within the length."""

import pytest

from llm_qa.console import UserError
from llm_qa.data.plain_prompt import render_prompt
from llm_qa.data.records import QARecord
from llm_qa.data.references import References, Retrieval, before
from llm_qa.models.embedded import build_tokenizer

PAPER = QARecord("1", ("벽지가 들뜨는 이유는 무엇인가요?", "왜 벽지가 떠요?"), ("습기 때문에 벽지가 들뜹니다.",))
GLUE = QARecord("2", ("벽지 풀은 어떻게 만드나요?",), ("물에 풀어 만듭니다.",))
FLOOR = QARecord("3", ("마루는 어떻게 닦나요?",), ("마른 걸레로 닦습니다.",))
AGAIN = QARecord("4", ("벽지가 들떴을 때 원인이 뭔가요?",), ("습기 때문에 벽지가 들뜹니다.",))  # shares PAPER's answer
DOOR = QARecord("5", ("문틀의 역할은 무엇인가요?",), ("문을 지탱합니다.",))
RECORDS = [PAPER, GLUE, FLOOR, AGAIN, DOOR]


def references(count=2, hit=1.0, records=RECORDS):
    return References(records, Retrieval(count, hit, 42))


def test_the_nearest_are_about_the_same_thing():
    found = references().nearest("벽지가 자꾸 들뜨는데 왜 그런가요?", 2)
    assert {record.id for record in found} == {"1", "4"}
    assert references().nearest("마루 닦는 방법", 1) == [FLOOR]


def test_a_question_of_unknown_words_still_gets_references():
    assert references().nearest("@@@", 2) == [PAPER, GLUE]


def test_a_record_is_never_its_own_reference_nor_is_one_that_shares_its_answer():
    index = references(4, hit=0.0)
    for question in PAPER.questions:
        for found in (index.drawn([PAPER], question, 0), index.nearest(question, 4, beside=[PAPER])):
            assert {record.id for record in found} == {"2", "3", "5"}


def test_a_question_of_two_records_has_references_of_both_and_of_neither_group():
    wallpaper = QARecord("6", ("벽지 풀을 만드는 순서는?",), ("물을 먼저 붓습니다.",))
    planks = QARecord("7", ("마루 닦는 걸레는 무엇인가요?",), ("극세사입니다.",))
    index = references(2, 0.0, [*RECORDS, wallpaper, planks])
    asked = f"{GLUE.questions[0]} 또한, {FLOOR.questions[0]}"
    assert {record.id for record in index.nearest(asked, 2, beside=[GLUE, FLOOR])} == {"6", "7"}
    everything = References(index.all, Retrieval(9, 0.0, 42), [])
    for epoch in range(3):
        found = everything.drawn([PAPER, FLOOR], asked, epoch)
        assert {record.id for record in found} == {"2", "5", "6", "7"}, "AGAIN is of PAPER's group"


def test_a_share_of_training_questions_gets_others_at_random_anew_each_epoch():
    records = [QARecord(str(i), (f"{i}번 방의 벽지는 무엇인가요?",), (f"{i}번 종이입니다.",)) for i in range(200)]
    index = references(1, 0.7, records)
    epochs = [[index.drawn([record], *record.questions, epoch) for record in records] for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    for epoch in epochs:
        assert 0.6 < sum(found is None for found in epoch) / 200 < 0.8
        assert all(found != [record] for record, found in zip(records, epoch, strict=True))


def test_a_record_outside_of_the_index_has_the_nearest_as_it_is_asked():
    index, held_out = references(2), QARecord("6", ("마루 청소는 어떻게 하나요?",), ("닦습니다.",))
    (question,) = held_out.questions
    assert index.nearest(question, 2, beside=[held_out]) == index.nearest(question, 2)
    assert index.nearest(question, 2)[0] == FLOOR


def test_references_stand_before_the_passage_the_nearest_last():
    text = before([PAPER, GLUE], "바닥 이야기")
    assert text.index("풀은") < text.index("들뜨는") < text.index("바닥")
    assert "참고 답변: 습기 때문에 벽지가 들뜹니다." in text
    assert before([], "그대로") == "그대로"
    chat = before([FLOOR], (("system", "짧게"), ("user", "네?"), ("assistant", "예.")))
    assert [role for role, _ in chat] == ["system", "passage", "user", "assistant"]
    assert render_prompt("왜?", before([FLOOR], ())) == render_prompt("왜?", before([FLOOR], ""))


def test_a_document_that_would_be_too_long_has_fewer_references():
    tokenizer, index = build_tokenizer(["가나다"]), references(4)
    part = [(PAPER, PAPER.questions[0], PAPER.answers[0]), (DOOR, DOOR.questions[0], DOOR.answers[0])]
    whole = [len(document.input_ids) for document in index.encode(tokenizer, part, 10_000)]
    none = [len(document.input_ids) for document in references(0).encode(tokenizer, part, 10_000)]
    most = (whole[0] + none[0]) // 2
    shorter = [len(document.input_ids) for document in index.encode(tokenizer, part, most)]
    assert none[0] < shorter[0] <= most < whole[0]
    question = tokenizer.decode(index.encode(tokenizer, part, most)[0].input_ids)
    assert "벽지가 들뜨는 이유는 무엇인가요?" in question


def test_one_record_has_no_others():
    with pytest.raises(UserError, match="retrieval 2 puts other training records"):
        references(records=[PAPER])
