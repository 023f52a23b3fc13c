"""Questions to answer (typed, or a file like the original's test.csv: id, 질문) and the file of their answers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.encoding import decode
from llm_qa.data.readers.columns import QUESTION_NAMES, pick, pick_one
from llm_qa.data.readers.csv import read_header, split_rows
from llm_qa.data.text import invalid_reason, normalize

ID_NAMES = ("id", "번호", "순번", "no", "no.")
LONGEST_QUESTION_CHARACTERS = 100_000  # far beyond every model's context
# Characters that a spreadsheet takes for the start of a formula, full-width forms included (OWASP, CSV injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def read_question(
    text: str,
    where: str = "The question",
    *,
    may_be_empty: bool = False,
    tidy: Callable[[str], str] = normalize,
) -> str:
    """A question (or with `tidy` normalize_lines a context) as it goes into the prompt; UserError if invalid."""
    if len(text) > LONGEST_QUESTION_CHARACTERS:
        raise UserError(f"{where} has {len(text):,} characters, at most {LONGEST_QUESTION_CHARACTERS:,} can be asked.")
    if reason := invalid_reason(text):
        raise UserError(f"{where} cannot be used: {reason}.")
    text = tidy(text)
    if not text and not may_be_empty:
        raise UserError(f"{where} is empty.")
    return text


def read_questions(
    path: str | Path, *, question_column: str | None = None, id_column: str | None = None
) -> list[tuple[str, str]]:
    """(id, question) of each row of a CSV with a question column; a missing id is the row's number.

    Every question needs an answer, so a bad row is a UserError with its line and not skipped.
    """
    path = Path(path)
    rows = split_rows(decode(path)[0])
    header = read_header(path, rows)
    column = pick(path, header, (question_column,) if question_column else (), QUESTION_NAMES, "question")[0]
    identity = pick_one(path, header, id_column, ID_NAMES, "id")
    questions: list[tuple[str, str]] = []
    for line, row, problem in rows:
        where = f"{path}, line {line}"
        if problem:
            raise UserError(f"{where}: {problem}.")
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} columns instead of {len(header)}; quote a cell that holds a comma.")
        question = read_question(row[column], f"{where}: the question")
        name = read_question(row[identity], f"{where}: the id", may_be_empty=True) if identity is not None else ""
        questions.append((name or str(len(questions) + 1), question))
    if not questions:
        raise UserError(f"{path} has a header but no questions.")
    return questions


def check_csv_name(path: Path, flag: str) -> None:
    """UserError for a name that does not end in .csv: a spreadsheet would refuse CSV text in a file called .xlsx."""
    if path.suffix.lower() != ".csv":
        raise UserError(f"{flag} {path} is written as CSV: give it a name that ends in .csv, which Excel opens too.")


def write_answers(path: str | Path, questions: list[tuple[str, str]], answers: list[str]) -> None:
    """Write id, 질문, 답변 as CSV in UTF-8 with BOM (without it Excel does not show Hangul).

    A cell that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "질문", "답변"])
    for (identity, question), answer in zip(questions, answers, strict=True):
        writer.writerow([harmless(identity), harmless(question), harmless(answer)])
    files.write_text(path, "\ufeff" + buffer.getvalue())


def harmless(cell: str) -> str:
    """The cell, with an apostrophe in front where it would start a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
