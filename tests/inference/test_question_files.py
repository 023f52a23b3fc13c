"""Question files in, answer files out."""

import csv

import pytest

from llm_qa.console import UserError
from llm_qa.data.text import normalize, normalize_lines
from llm_qa.inference.question_files import (
    FileQuestion,
    check_csv_name,
    harmless,
    read_question,
    read_questions,
    write_answers,
)


def test_the_original_test_csv(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text('id,질문\nTEST_000,"왜, 그런가요?"\n\nTEST_001,네?\n', encoding="cp949")
    assert read_questions(path) == [("TEST_000", "왜, 그런가요?", ""), ("TEST_001", "네?", "")]


def test_ids_that_repeat_are_said(tmp_path, capsys):
    path = tmp_path / "test.csv"
    path.write_text("id,질문\n가,왜?\n나,언제?\n가,어디?\n", encoding="utf-8")
    assert [row.id for row in read_questions(path)] == ["가", "나", "가"]
    assert "ids that stand for more than one question: 가" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,질문\n1,\n", "line 2: the question is empty"),
        ("id,질문\n1,가\x01\n", r"line 2: the question cannot be used: control character .*\(U\+0001\)"),
        ("id,질문\n\x02,가\n", "line 2: the id cannot be used"),
        (f"id,질문\n1,{'가' * 100_001}\n", "line 2: the question has 100,001 characters, at most 100,000"),
        ("\ufeff", "is empty"),
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
    write_answers(path, [FileQuestion("1", "가?"), FileQuestion("2", "나?")], ['=HYPERLINK("x")', "쉼표, 와\n줄"])
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "질문", "답변"], ["1", "가?", '\'=HYPERLINK("x")'], ["2", "나?", "쉼표, 와\n줄"]]


@pytest.mark.parametrize(
    ("header", "flags"), [("번호,질문", {}), ("순번,물음", {"question_column": "물음"}), ("ID,Q", {})]
)
def test_numbers_and_questions_under_other_names(tmp_path, header, flags):
    path = tmp_path / "questions.csv"
    path.write_text(f"{header}\n1,왜?\n3,네?\n", encoding="utf-8")
    assert read_questions(path, **flags) == [("1", "왜?", ""), ("3", "네?", "")]
    with pytest.raises(UserError, match=r"has no column '물'"):
        read_questions(path, question_column="물")
    assert read_questions(path, id_column=header.split(",")[1], **flags)[0] == ("왜?", "왜?", "")


@pytest.mark.parametrize("flags", [{}, {"question_column": "고객 질문"}])
def test_a_title_above_the_header_and_columns_that_are_not_read_are_said(tmp_path, capsys, flags):
    path = tmp_path / "faq.csv"
    path.write_text("동물병원 자주 묻는 질문,,\n\n번호,고객 질문,비고\n7,왜?,전화\n", encoding="utf-8")
    assert read_questions(path, **flags) == [("7", "왜?", "")]
    said = capsys.readouterr().out
    assert f"{path}: the header is in line 3, below 1 other row" in said
    assert f"{path}: columns ignored: 비고" in said
    path.write_text("고객 질문\n왜?\n", encoding="utf-8")
    assert read_questions(path, **flags) == [("1", "왜?", "")]


def test_a_context_column_is_what_its_question_is_asked_about(tmp_path, capsys):
    path = tmp_path / "questions.csv"
    path.write_text('instruction,input\n"요약하세요","첫 줄\n둘째 줄"\n왜?,\n', encoding="utf-8")
    assert read_questions(path) == [("1", "요약하세요", "첫 줄\n둘째 줄"), ("2", "왜?", "")]
    assert read_questions(path, tidy=normalize)[0].context == "첫 줄 둘째 줄"
    assert "ignored" not in capsys.readouterr().out
    path.write_text("input\n왜?\n", encoding="utf-8")
    assert read_questions(path) == [("1", "왜?", "")]


def test_answers_are_not_called_a_workbook(tmp_path):
    check_csv_name(tmp_path / "answers.CSV", "--out")
    for name in ("answers.xlsx", "answers", "answers.json"):
        with pytest.raises(UserError, match=rf"--out .*{name} is written as CSV: give it a name that ends in .csv"):
            check_csv_name(tmp_path / name, "--out")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_no_cell_starts_a_formula(start):
    assert harmless(f"{start}1+1") == f"'{start}1+1"
    assert harmless(f"1{start}1") == f"1{start}1"


def test_a_typed_question_is_judged_like_one_of_a_file():
    assert read_question(" 벽지는\u1100\u1161\n왜? ") == "벽지는가 왜?"
    for bad in ("  ", "\udcff", "가" * 100_001, "a" + "\u0301" * 40):
        with pytest.raises(UserError, match="The question"):
            read_question(bad)
    assert read_question("", "The --context", may_be_empty=True) == ""
    assert read_question("첫 줄 \n둘째", "The --context", tidy=normalize_lines) == "첫 줄\n둘째"
