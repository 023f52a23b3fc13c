"""Question files in, answer files out."""

import csv

import pytest

from llm_qa.console import UserError
from llm_qa.data.questions import read_questions, write_answers


def test_the_original_test_csv(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text('id,질문\nTEST_000,"왜, 그런가요?"\n\nTEST_001,네?\n', encoding="cp949")
    assert read_questions(path) == [("TEST_000", "왜, 그런가요?"), ("TEST_001", "네?")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,질문\n1,\n", "line 2: the question is empty"),
        ("id,질문\n1,가,나\n", "line 2: 3 columns instead of 2"),
        ("id,질문\n", "no questions"),
        ("id,물음\n1,가\n", "no question column"),
        ('id,질문\n1,"가\n', "line 2: not readable as CSV"),
    ],
)
def test_a_bad_row_is_an_error_because_answers_must_line_up(tmp_path, text, sentence):
    path = tmp_path / "test.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_questions(path)


def test_answers_that_a_spreadsheet_would_run_are_made_harmless(tmp_path):
    path = tmp_path / "answers.csv"
    write_answers(path, [("1", "가?"), ("2", "나?")], ['=HYPERLINK("x")', "쉼표, 와\n줄"])
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "질문", "답변"], ["1", "가?", '\'=HYPERLINK("x")'], ["2", "나?", "쉼표, 와\n줄"]]
