"""CSV: text -> rows, and which columns are questions and answers.

Strict, and linear in the size of the file whatever stands in it: a stray quote costs its own row.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from llm_qa.console import UserError
from llm_qa.data.readers.rows import LONGEST_LINE_CHARACTERS, ColumnNames, Row
from llm_qa.data.text import flaw, normalize, visible

LARGEST_CELL_CHARACTERS = 1_000_000
MOST_COLUMNS = 1_000
MOST_LINES = 1_000  # of one row, by line breaks within quotes
NEAR_LINES = 20
QUESTION_NAMES = ("질문", "question", "q", "instruction", "prompt")
ANSWER_NAMES = ("답변", "답", "answer", "a", "output", "response")
CATEGORY_NAMES = ("category", "카테고리", "분류")
CONTEXT_NAMES = ("context", "맥락", "지문")


def split_rows(text: str) -> Iterator[tuple[int, list[str], str]]:
    """(first line, cells, problem) of each row that is not blank, the header among them.

    A row that cannot be taken apart has a problem, and its first line as its only cell; reading goes on with the line
    after it. Where such a row had run on for many lines (a quote that nothing closes), these are taken one by one:
    reading on from each of them as far again would make the time quadratic.
    """
    start = text.lstrip("\r\n")[:LARGEST_CELL_CHARACTERS]
    delimiter = max(",\t;", key=start.partition("\n")[0].count)
    csv.field_size_limit(LARGEST_CELL_CHARACTERS)
    source, given_back = io.StringIO(text, newline=""), deque()
    line, alone = 1, 0

    def feed(taken: list[str], most: int) -> Iterator[str]:
        while len(taken) < most and (current := given_back.popleft() if given_back else source.readline()):
            taken.append(current)
            if len(current) > LONGEST_LINE_CHARACTERS:
                raise csv.Error(f"a line of more than {LONGEST_LINE_CHARACTERS:,} characters")
            yield current

    while True:
        taken: list[str] = []
        try:
            reader = csv.reader(feed(taken, 1 if alone else MOST_LINES), delimiter=delimiter, strict=True)
            cells, problem = next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = taken[:1], f"not readable as CSV ({error})"
            given_back.extendleft(reversed(taken[1:]))
            if len(taken) > NEAR_LINES:
                alone = len(taken)
            del taken[1:]
        if problem or any(cell.strip() for cell in cells):
            yield line, cells, problem
        line += len(taken)
        alone = max(alone - len(taken), 0)


def read_header(path: Path, rows: Iterator[tuple[int, list[str], str]]) -> list[str]:
    """The normalised column names: takes the first row. Raises UserError when they cannot be that."""
    _, header, problem = next(rows, (0, [], "no line with text"))
    if problem:
        raise UserError(f"{path} has no readable header: {problem}.")
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{path} has {len(header):,} columns: this is not question-answer data.")
    if reason := next(filter(None, map(flaw, header)), ""):
        raise UserError(f"{path} has no readable header: {reason}.")
    return list(map(normalize, header))


def csv_rows(path: Path, text: str, columns: ColumnNames) -> tuple[str, Iterator[Row]]:
    """(format, rows) of a CSV with a header; wide when it has several question or answer columns."""
    found = split_rows(text)
    header = read_header(path, found)
    questions = pick(path, header, columns.question, QUESTION_NAMES, "question")
    answers = pick(path, header, columns.answer, ANSWER_NAMES, "answer")
    if both := set(questions) & set(answers):
        name = listed([header[min(both)]])
        raise UserError(f"{path}: column {name!r} cannot be both --question-column and --answer-column.")
    category = pick_one(path, header, columns.category, CATEGORY_NAMES, "category")
    context = pick_one(path, header, columns.context, CONTEXT_NAMES, "context")
    identity = pick_one(path, header, columns.id, ("id",), "id")
    used = {*questions, *answers, category, context, identity}
    ignored = [name for i, name in enumerate(header) if i not in used]
    kind = "wide CSV" if len(questions) + len(answers) > 2 else "long CSV"
    kind += f" (columns ignored: {listed(ignored)})" if ignored else ""

    def cell(row: list[str], index: int | None) -> str:
        return row[index] if index is not None else ""

    def rows() -> Iterator[Row]:
        for line, row, problem in found:
            if not problem and len(row) != len(header):
                problem = f"wrong column count: {len(row)} instead of {len(header)}"
            if problem:
                yield Row(line, problem=problem, raw=",".join(text[:1000] for text in row[:20])[:1000])
                continue
            yield Row(
                line,
                cell(row, identity),
                tuple(row[i] for i in questions),
                tuple(row[i] for i in answers),
                cell(row, category),
                cell(row, context),
            )

    return kind, rows()


def listed(names: list[str]) -> str:
    """Column names for a sentence: a few, and not endless ones."""
    return visible(", ".join(name[:100] for name in names[:20]))[:300] + (", ..." if len(names) > 20 else "")


def pick(path: Path, header: list[str], named: tuple[str, ...], known: tuple[str, ...], what: str) -> list[int]:
    """Column numbers: those named by flag, else `name` or `name_1, name_2 ...` of a known name. UserError if none."""
    if named:
        if missing := [name for name in named if normalize(name) not in header]:
            raise UserError(f"{path} has no column {missing[0]!r} (--{what}-column); it has {listed(header)}.")
        return [header.index(normalize(name)) for name in named]
    for name in known:
        pattern = re.compile(rf"{re.escape(name)}([ _]?\d+)?", re.IGNORECASE)
        if found := [i for i, title in enumerate(header) if pattern.fullmatch(title)]:
            return found
    raise UserError(
        f"{path} has no {what} column that can be recognised among {listed(header)}: name it with --{what}-column."
    )


def pick_one(path: Path, header: list[str], named: str | None, known: tuple[str, ...], what: str) -> int | None:
    """The column number of an optional column, or None."""
    if named is not None:
        return pick(path, header, (named,), (), what)[0]
    lowered = [title.casefold() for title in header]
    return next((lowered.index(name) for name in known if name in lowered), None)
