"""Files of questions to answer (the original's test.csv: id, 질문) and of their answers."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.readers import QUESTION_NAMES, decode, forbidden, pick, pick_one
from llm_qa.data.text import normalize

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def read_questions(path: str | Path) -> list[tuple[str, str]]:
    """(id, question) of each row of a CSV with a question column; a missing id is the row's number.

    Answers must line up with questions, so a bad row is a UserError with its line, not a row left out.
    """
    path = Path(path)
    text, _ = decode(path)
    delimiter = max(",\t;", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    questions: list[tuple[str, str]] = []
    try:
        header = [normalize(name) for name in next(reader)]
        column = pick(path, header, (), QUESTION_NAMES, "question")[0]
        identity = pick_one(path, header, None, ("id",), "id")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise UserError(
                    f"{where}: {len(row)} columns instead of {len(header)}; quote a cell that holds a comma."
                )
            question = normalize(row[column])
            if not question or forbidden(row[column]):
                raise UserError(f"{where}: the question is empty or has control characters.")
            questions.append((row[identity] if identity is not None else str(len(questions) + 1), question))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from None
    if not questions:
        raise UserError(f"{path} has a header but no questions.")
    return questions


def write_answers(path: str | Path, questions: list[tuple[str, str]], answers: list[str]) -> None:
    """Write id, 질문, 답변 as CSV in UTF-8 with BOM (Excel shows Hangul only with it).

    A cell that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "질문", "답변"])
    for (identity, question), answer in zip(questions, answers, strict=True):
        writer.writerow([harmless(identity), harmless(question), harmless(answer)])
    files.write_text(path, "\ufeff" + buffer.getvalue())


def harmless(cell: str) -> str:
    """The cell, with an apostrophe before what would start a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
