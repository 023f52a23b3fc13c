"""answers.csv and answers.xlsx: every question and answer, as text, whatever it begins with."""

import csv
import io

import openpyxl

from evaluation.fixtures import make_evaluation, make_rows, make_run
from llm_qa.evaluation.report.answers_table import CSV, XLSX, clean
from llm_qa.evaluation.report.loading import load_report
from llm_qa.evaluation.report.rendering import write_report


def test_every_question_has_a_row_with_both_answers_and_no_formula(tmp_path):
    run = make_run(tmp_path / "runs")
    rows = make_rows(tuned=True)
    for row, text in zip(rows, ("=1+1", "@SUM(A1)", "-5도에서\n+보관", "널\x00 벨\x07"), strict=False):
        row["prediction"] = text
    make_evaluation(run, rows)
    write_report(load_report([run]), tmp_path / "out")
    raw = (tmp_path / "out" / CSV).read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf"), "Excel reads UTF-8 by its byte order mark"
    header, *lines = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"))))
    assert header[:6] == ["id", "category", "question", "context", "references", "trained on"]
    at, score = header.index("answer: tuned"), header.index("character F1: tuned")
    assert len(lines) == len(rows)
    assert [line[at] for line in lines[:4]] == ["'=1+1", "'@SUM(A1)", "'-5도에서\n+보관", "널 벨"]
    assert [line[2] for line in lines] == [row["question"] for row in rows]
    sheet = openpyxl.load_workbook(tmp_path / "out" / XLSX).active
    cells = list(sheet.iter_rows(min_row=2))
    assert [row[at].value for row in cells[:4]] == ["=1+1", "@SUM(A1)", "-5도에서\n+보관", "널 벨"]
    assert {row[at].data_type for row in cells} == {"s"}
    assert all(isinstance(row[score].value, int | float) for row in cells)
    assert "answer: base" in header
    assert clean("대리\ud800") == "대리?"
