"""Marks of answers: appended a line at a time, and read as data."""

import json
import threading

import pytest
from command_line import run_script

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.marks import BAD, GOOD, Mark, append_mark, check_marks_file
from llm_qa.data.readers import read_files
from llm_qa.data.readers.marks import MARKED_ANEW, NOT_BETTER


@pytest.fixture
def marks(tmp_path):
    path = tmp_path / "marks.jsonl"
    for mark in (
        Mark("결로는 왜?", "춥습니다", BAD),
        Mark("벽지는?", "풀을 바릅니다", GOOD),
        Mark("마루는?", "젖은 채 깝니다", BAD, "7일 말린 뒤 깝니다\n그리고 닦습니다"),
        Mark("결로는 왜?", "물", BAD),
        Mark("결로는 왜?", "물", GOOD),
    ):
        append_mark(path, mark)
    return path


def test_good_and_better_answers_are_records_and_each_other_mark_has_its_reason(marks):
    result = read_files([marks])
    assert [(record.questions, record.answers) for record in result.records] == [
        (("벽지는?",), ("풀을 바릅니다",)),
        (("마루는?",), ("7일 말린 뒤 깝니다\n그리고 닦습니다",)),
        (("결로는 왜?",), ("물",)),
    ]
    assert [(row.line, row.reason) for row in result.rejected] == [(1, NOT_BETTER), (4, MARKED_ANEW)]
    assert result.files[0]["format"] == "marks"


def test_prepare_data_reads_them_beside_other_data_and_counts_what_is_left_out(marks, tmp_path):
    table = tmp_path / "more.csv"
    rows = "".join(f"{i}번 타일은 어떻게 붙이나요?,{i}번 풀로 붙입니다\n" for i in range(30))
    table.write_text(f"질문,답변\n{rows}", encoding="utf-8")
    done = run_script("scripts/prepare_data.py", table, marks, "--out", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert f"1 {NOT_BETTER}" in done.stdout
    kept = [
        row for split in ("train", "validation", "test") for row in files.read_jsonl(tmp_path / f"data/{split}.jsonl")
    ]
    answers = [answer for row in kept for answer in row["answers"]]
    assert len(kept) == 33
    assert {"풀을 바릅니다", "7일 말린 뒤 깝니다\n그리고 닦습니다", "물"} <= set(answers)
    assert not {"춥습니다", "젖은 채 깝니다"} & set(answers)


def test_marks_that_are_all_bad_are_refused_with_the_reason(tmp_path):
    append_mark(tmp_path / "marks.jsonl", Mark("결로는?", "춥습니다", BAD))
    with pytest.raises(UserError, match=NOT_BETTER):
        read_files([tmp_path / "marks.jsonl"])


def test_a_line_that_a_crash_cut_costs_that_line_alone(marks):
    with open(marks, "ab") as file:
        file.write('{"question": "반쯤'.encode()[:-1])
    append_mark(marks, Mark("가?", "나", GOOD))
    last = marks.read_bytes().splitlines()[-1]
    assert json.loads(last)["question"] == "가?"


def test_a_value_that_is_no_text_is_rejected_with_its_line(marks):
    with open(marks, "a", encoding="utf-8") as file:
        file.write('{"question": ["가?"], "answer": 1, "mark": "good", "better": null}\n[1]\n')
    assert [row.line for row in read_files([marks]).rejected] == [1, 4, 6, 7]


def test_marks_of_many_threads_stay_whole_lines(tmp_path):
    path = tmp_path / "marks.jsonl"
    long = "가" * 20_000

    def mark_some(number):
        for i in range(20):
            append_mark(path, Mark(f"{number}-{i}?", long, GOOD))

    threads = [threading.Thread(target=mark_some, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    assert len({line["question"] for line in lines}) == 160


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(UserError, match="better cannot be kept"):
        append_mark(tmp_path / "marks.jsonl", Mark("가?", "나", BAD, "다\x00"))
    with pytest.raises(UserError, match="answer cannot be kept"):
        append_mark(tmp_path / "marks.jsonl", Mark("가?", "나\ufffd", GOOD))
    assert not (tmp_path / "marks.jsonl").exists()
    append_mark(tmp_path / "marks.jsonl", Mark("가?", "나\ufffd", BAD, "나무"))
    assert read_files([tmp_path / "marks.jsonl"]).records[0].answers == ("나무",)
    with pytest.raises(ValueError, match="is not good or bad"):
        Mark("가?", "나", "so-so")


def test_a_file_that_holds_something_else_is_not_written_to(marks, tmp_path):
    check_marks_file(marks)
    check_marks_file(tmp_path / "new.jsonl")
    (tmp_path / "train.csv").write_text("질문,답변\n", encoding="utf-8")
    for path in (tmp_path / "train.csv", tmp_path, tmp_path / "nowhere" / "marks.jsonl"):
        with pytest.raises(UserError, match="--marks"):
            check_marks_file(path)
