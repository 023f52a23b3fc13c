"""JSON: the shapes that question-answer data is published in, and one sentence for those that are none."""

import json

import pytest

from llm_qa.console import UserError
from llm_qa.data.groups import group_records
from llm_qa.data.readers import read_files
from llm_qa.data.readers.rows import ColumnNames
from llm_qa.data.records import QARecord

TURNS = [("system", "너는 도우미다."), ("user", "가?"), ("assistant", "나"), ("user", "다?"), ("assistant", "라\n마")]
MESSAGES = [{"role": role, "content": text} for role, text in TURNS]
SHARE_GPT = [{"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text} for role, text in TURNS]


def read(tmp_path, values, columns=None, name="x.jsonl", **more):
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    (tmp_path / name).write_text(lines, encoding="utf-8")
    return read_files([tmp_path / name], columns, **more)


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": "가?", "input": "", "output": "나"},
        {"prompt": "가?", "completion": "나"},
        {"질문": "가?", "답변": "나"},
        {"질문_1": "가?", "질문_2": "", "답변_1": "나"},
        {"Question": "가?", "Answer": "나"},
        {"question": "가?", "answers": {"text": ["나", "나"], "answer_start": [0, 0]}},
        {"messages": MESSAGES[1:3]},
        {"conversations": SHARE_GPT[1:3]},
        {"messages": [*MESSAGES[1:3], {"role": "user", "content": "고맙습니다"}]},
        {"question": "가?", "answer": "나", "data": {"src": "faq"}},
        {"question": "가?", "answer": "나", "data": None},
        {"question": "가?", "answer": "나", "data": [1]},
        {"question": "가?", "answer": "나", "category": "data"},
    ],
    ids=lambda value: ",".join(value),
)
def test_the_shapes_of_a_record(tmp_path, value):
    result = read(tmp_path, [value, {**value, "id": "둘"}])
    assert result.records[0].pairs() == [("가?", "나")]
    assert result.files[0]["format"] == "JSONL"
    assert read(tmp_path, [value]).records == result.records[:1], "also alone in its file"
    assert read(tmp_path, [[value]], name="x.json").files[0]["format"] == "JSON list"


@pytest.mark.parametrize("value", [{"messages": MESSAGES}, {"conversations": SHARE_GPT}], ids=["messages", "sharegpt"])
def test_the_start_of_a_conversation_is_its_context(tmp_path, value):
    result = read(tmp_path, [value])
    assert (
        "1 conversation with several questions: only the answer to the last is trained" in result.files[0]["notes"][0]
    )
    record = result.records[0]
    assert record.pairs() == [("다?", "라\n마")]
    assert record.context == "너는 도우미다.\n\n질문: 가?\n\n답변: 나"
    assert (record.system, record.passage) == ("너는 도우미다.", "질문: 가?\n\n답변: 나")


@pytest.mark.parametrize("value", [{"messages": MESSAGES}, {"conversations": SHARE_GPT}], ids=["messages", "sharegpt"])
def test_every_answer_of_a_conversation_can_be_learned(tmp_path, value):
    result = read(tmp_path, [value, {"question": "바?", "answer": "사"}], learn_turns="all")
    first, second, other = result.records
    assert (first.questions, first.answers, first.context) == (("가?",), ("나",), "너는 도우미다.")
    assert (second.questions, second.answers) == (("다?",), ("라\n마",))
    assert second.messages == (("system", "너는 도우미다."), ("user", "가?"), ("assistant", "나"))
    assert "every answer is trained" in result.files[0]["notes"][0]
    assert first.id != second.id
    assert [[record.id for record in group] for group in group_records(result.records)] == [
        [first.id, second.id],
        [other.id],
    ]
    assert QARecord.from_json(json.loads(json.dumps(second.to_json()))) == second


def test_conversations_that_begin_with_the_same_greeting_are_groups_of_their_own(tmp_path):
    greeting = [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네, 안녕하세요."}]
    conversations = [
        [*greeting, {"role": "user", "content": f"{n}번?"}, {"role": "assistant", "content": f"{n}번입니다."}]
        for n in range(4)
    ]
    result = read(tmp_path, [{"messages": turns} for turns in conversations], learn_turns="all")
    assert [len(record.messages) for record in result.records] == [0, 2, 2, 2, 2], "the same greeting is learned once"
    assert sorted(map(len, group_records(result.records))) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (MESSAGES[:2], "a conversation without a question and the assistant's answer to it"),
        (MESSAGES[2:3], "a conversation without a question"),
        ([{"role": "tool", "content": "x"}, *MESSAGES], "has the role 'tool'"),
        ([{"role": "user", "content": [{"type": "text"}]}, *MESSAGES[2:3]], "is not text"),
        ([3], "is not an object"),
    ],
)
def test_a_conversation_of_another_form_is_a_rejected_row(tmp_path, turns, reason):
    result = read(tmp_path, [{"question": "가?", "answer": "나"}, {"messages": turns}])
    assert reason in result.rejected[0].reason


def test_a_number_is_an_answer(tmp_path):
    values = [{"id": 0, "question": "몇 겹?", "answer": 3}, {"question": "두께?", "answers": [1.5, "1,5"]}]
    assert [record.answers for record in read(tmp_path, values).records] == [("3",), ("1.5", "1,5")]
    assert "answer is not text" in read(tmp_path, [*values, {"question": "가?", "answer": True}]).rejected[0].reason


def test_a_system_prompt_beside_the_question_starts_the_context_and_prepared_records_are_read_again(tmp_path):
    value = {"system_prompt": "너는 도우미다.", "question": "가?", "response": "나", "context": "지문"}
    record = read(tmp_path, [value]).records[0]
    assert (record.context, record.system, record.passage) == ("너는 도우미다.\n\n지문", "너는 도우미다.", "지문")
    assert read(tmp_path, [record.to_json()]).records == [record]


def test_a_system_prompt_beside_a_conversation_starts_its_context(tmp_path):
    result = read(
        tmp_path, [{"system": "너는 도우미다.", "conversations": SHARE_GPT[1:3]}, {"conversations": SHARE_GPT[1:3]}]
    )
    assert [(record.context, record.system) for record in result.records] == [("너는 도우미다.",) * 2, ("", "")]
    assert result.files[0]["notes"] == []


def test_an_id_of_zero_is_an_id(tmp_path):
    result = read(
        tmp_path, [{"id": 0, "question": "가?", "answer": "답"}, {"id": True, "question": "나?", "answer": "b"}]
    )
    assert [record.id for record in result.records] == ["0"]
    assert "id is not text" in result.rejected[0].reason


def test_keys_that_are_not_read_are_named(tmp_path):
    values = [{"question": "가?", "answer": "나", "src": 1}, {"question": "다?", "answer": "라", "memo": "", "id": 1}]
    assert read(tmp_path, values).files[0]["notes"] == ["keys ignored: src, memo"]
    assert read(tmp_path, [{"conversations": SHARE_GPT[1:3], "id": "a"}]).files[0]["notes"] == []


def test_keys_that_are_not_known_are_named_with_the_flags_and_these_work(tmp_path):
    with pytest.raises(
        UserError, match=r"no question or answer among its keys \(text\), which --question-column and --answer-column"
    ):
        read(tmp_path, [{"text": "### 질문: 가?\n\n### 답변: 나"}] * 2)
    result = read(tmp_path, [{"물음": "가?", "대답": "나", "갈래": "c"}], ColumnNames(("물음",), ("대답",), "갈래"))
    assert (result.records[0].pairs(), result.records[0].category) == ([("가?", "나")], "c")
