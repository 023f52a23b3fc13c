"""Questions to answer (typed, or a file like the original's test.csv: id, 질문) and the file of their answers."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.data.encoding import decode
from llm_qa.data.joining import asks_two_questions
from llm_qa.data.readers.columns import CONTEXT_NAMES, ID_NAMES, QUESTION_NAMES, find_columns, listed, pick, pick_one
from llm_qa.data.readers.csv import split_rows
from llm_qa.data.readers.table import below, find_header, header_notes
from llm_qa.data.text import invalid_reason, normalize, normalize_lines

LONGEST_QUESTION_CHARACTERS = 100_000  # far beyond every model's context
# Characters that a spreadsheet takes for the start of a formula, full-width forms included (OWASP, CSV injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class FileQuestion(NamedTuple):
    """A row of a file of questions; the id is the row's number where the file has none."""

    id: str
    question: str
    context: str = ""


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
    path: str | Path,
    *,
    question_column: str | None = None,
    id_column: str | None = None,
    tidy: Callable[[str], str] = normalize_lines,
) -> list[FileQuestion]:
    """The rows of a CSV with a question column, and perhaps an id and a context column (normalised by `tidy`).

    Answers must line up with questions, so a bad row is a UserError with its line, not a row left out. Says where the
    header stands below a title, and which columns are not read.
    """
    path = Path(path)
    text = decode(path)[0]

    def fits(header: list[str]) -> bool:
        if question_column:
            return normalize(question_column) in header
        named = [name for name in header if name]
        # A title of one cell may end in 질문 too.
        return bool(find_columns(header, QUESTION_NAMES)) and (len(named) > 1 or named[0].casefold() in QUESTION_NAMES)

    header_line, header, above = find_header(path, split_rows(text), fits)
    column = pick(path, header, (question_column,) if question_column else (), QUESTION_NAMES, "question")[0]
    identity = pick_one(path, header, id_column, ID_NAMES, "id")
    passage = pick_one(path, header, None, CONTEXT_NAMES, "context")
    passage = None if passage == column else passage  # `input` without an instruction is the question itself
    ignored = [name for i, name in enumerate(header) if name and i not in (column, identity, passage)]
    for note in header_notes(header_line, above) + [f"columns ignored: {listed(ignored)}"] * bool(ignored):
        say(f"{path}: {note}")
    questions: list[FileQuestion] = []
    for line, row, problem in below(split_rows(text), header_line):
        where = f"{path}, line {line}"
        if problem:
            raise UserError(f"{where}: {problem}.")
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} columns instead of {len(header)}; quote a cell that holds a comma.")
        question = read_question(row[column], f"{where}: the question")
        name = read_question(row[identity], f"{where}: the id", may_be_empty=True) if identity is not None else ""
        context = ""
        if passage is not None:
            context = read_question(row[passage], f"{where}: the context", may_be_empty=True, tidy=tidy)
        questions.append(FileQuestion(name or str(len(questions) + 1), question, context))
    if not questions:
        raise UserError(f"{path} has a header but no questions.")
    names = Counter(row.id for row in questions)
    if repeated := [name for name, times in names.items() if times > 1]:
        say(f"{path}: ids that stand for more than one question: {listed(repeated)}")
    return questions


def note_double_questions(path: Path, questions: list[FileQuestion], trained: str = "") -> None:
    """Say how many of a file's questions ask two things at once, where there are any, and how to train for that.

    `trained` goes on with what the model at hand has to do with it (", which this run was not trained on").
    """
    double = sum(asks_two_questions(row.question) for row in questions)
    if double:
        say(
            f"{path}: {double:,} of {len(questions):,} questions ask two things at once{trained}: a recipe with "
            "join_questions: 0.3 (--join-questions 0.3) trains on such questions too"
        )


NOT_TRAINED = ", which this run was not trained on"


def check_csv_name(path: Path, flag: str) -> None:
    """UserError for a name that does not end in .csv: a spreadsheet would refuse CSV text in a file called .xlsx."""
    if path.suffix.lower() != ".csv":
        raise UserError(f"{flag} {path} is written as CSV: give it a name that ends in .csv, which Excel opens too.")


def write_answers(path: str | Path, questions: list[FileQuestion], answers: list[str]) -> None:
    """Write id, 질문, 답변 as CSV in UTF-8 with BOM (Excel shows Hangul only with it).

    A cell that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "질문", "답변"])
    for row, answer in zip(questions, answers, strict=True):
        writer.writerow([harmless(row.id), harmless(row.question), harmless(answer)])
    files.write_text(path, "\ufeff" + buffer.getvalue())


def harmless(cell: str) -> str:
    """The cell, with an apostrophe in front where it would start a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
