"""Records: their pairs and their form on disk."""

import json

import pytest

from llm_qa.data.records import QARecord


def record(questions=("질문?",), answers=("답.",), **more):
    return QARecord("R0001", tuple(questions), tuple(answers), **more)


def test_a_record_gives_every_question_with_every_answer():
    assert record(["가?", "나?"], ["하나", "둘"]).pairs() == [
        ("가?", "하나"),
        ("가?", "둘"),
        ("나?", "하나"),
        ("나?", "둘"),
    ]


def test_json_round_trip_and_what_is_refused():
    made = record(["가?"], ["하나"], category="마감재", context="지문")
    assert QARecord.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert "context" not in record().to_json()
    for bad in ([], {"questions": [], "answers": ["a"]}, {"questions": ["q"], "answers": "a"}):
        with pytest.raises(ValueError, match="is not"):
            QARecord.from_json(bad)
