"""Rows from the cells of a CSV file or a workbook, in the form that people give tables in a spreadsheet.

A title above the header, merged cells, blank rows and columns without a name are common there; the table's notes say
how they were handled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llm_qa.console import UserError
from llm_qa.data.readers.columns import (
    ANSWER_NAMES,
    CATEGORY_NAMES,
    CONTEXT_NAMES,
    ID_NAMES,
    QUESTION_NAMES,
    find_columns,
    listed,
    pick,
    pick_one,
)
from llm_qa.data.readers.csv import header_problem
from llm_qa.data.readers.rows import ColumnNames, Row, Table
from llm_qa.data.text import normalize

Grid = Iterator[tuple[int, list[str], str]]  # (first line, cells, problem) of each row
HEADER_WITHIN = 20  # rows from the first that is not blank


@dataclass(frozen=True)
class Columns:
    """The numbers of the columns that are read, and in `ignored` of those that are not."""

    question: list[int]
    answer: list[int]
    category: int | None
    context: int | None
    id: int | None
    ignored: list[int]


def read_table(path: Path, kind: str, grid: Callable[[], Grid], columns: ColumnNames) -> Table:
    """The rows below the header of a CSV or a workbook (`kind`), wide with several question or answer columns.

    Each call of `grid` starts at the first row: the whole table is surveyed before its first row is returned.
    Raises UserError where question and answer columns are not found.
    """
    line, header, above = find_header(path, grid(), lambda header: is_header(header, columns))
    chosen = choose_columns(path, header, columns)
    found = survey(below(grid(), line), header, chosen)
    notes = header_notes(line, above)
    for what, numbers, known in (
        ("question", chosen.question, QUESTION_NAMES),
        ("answer", chosen.answer, ANSWER_NAMES),
    ):
        title = header[numbers[0]]
        if title.casefold() not in known and not getattr(columns, what) and len(numbers) == 1:
            notes.append(f"{what} column: {listed([title])}")
    notes += found.notes(header, chosen)
    wide = "wide" if len(chosen.question) + len(chosen.answer) > 2 else "long"
    return Table(f"{wide} {kind}", _rows(below(grid(), line), header, chosen, found.merged), notes)


def find_header(path: Path, grid: Grid, fits: Callable[[list[str]], bool]) -> tuple[int, list[str], int]:
    """(line, column names, rows with text above it) of the first row whose column names are what is looked for.

    Where no row `fits`, the header is taken to be the first row with two names, so that what is said of it helps.
    """
    filled = ((line, cells, problem) for line, cells, problem in grid if problem or any(map(str.strip, cells)))
    candidates: list[tuple[int, list[str]]] = []
    for line, cells, problem in islice(filled, HEADER_WITHIN):
        problem = problem or header_problem(cells)
        if problem and not candidates:
            raise UserError(f"{path} has no readable header: {problem}.")
        header = list(map(normalize, cells)) if not problem else []
        if fits(header):
            return line, header, len(candidates)
        candidates.append((line, header))
    if not candidates:
        raise UserError(f"{path} has no readable header: no line with text.")
    titles = [len(list(filter(None, header))) for _, header in candidates]
    place = next((i for i, count in enumerate(titles) if count > 1), 0)
    return *candidates[place], place


def header_notes(line: int, above: int) -> list[str]:
    """What to say of a header that is not the first row with text; nothing for one that is."""
    return [f"the header is in line {line}, below {above} other row{'s'[: above > 1]}"] if above else []


def is_header(header: list[str], columns: ColumnNames) -> bool:
    """True for column names among which both a question and an answer are found, by flag or by known name."""
    named = ((columns.question, QUESTION_NAMES), (columns.answer, ANSWER_NAMES))
    return all(
        {normalize(name) for name in flags} <= set(header) if flags else find_columns(header, known)
        for flags, known in named
    )


def choose_columns(path: Path, header: list[str], columns: ColumnNames) -> Columns:
    """The role of each column; UserError where it is unclear or one column would have two roles."""
    question = pick(path, header, columns.question, QUESTION_NAMES, "question")
    answer = pick(path, header, columns.answer, ANSWER_NAMES, "answer")
    if both := set(question) & set(answer):
        name = listed([header[min(both)]])
        raise UserError(f"{path}: column {name!r} cannot be both --question-column and --answer-column.")
    category = pick_one(path, header, columns.category, CATEGORY_NAMES, "category")
    context = pick_one(path, header, columns.context, CONTEXT_NAMES, "context")
    if columns.context is None and context in question:  # `input` without an instruction is the question itself
        context = None
    identity = pick_one(path, header, columns.id, ID_NAMES, "id")
    used = {*question, *answer, category, context, identity}
    return Columns(question, answer, category, context, identity, [i for i in range(len(header)) if i not in used])


@dataclass
class Survey:
    """Properties of a table that its notes are about."""

    rows: int = 0
    blank: int = 0
    uncategorised: int = 0
    merged: bool = False  # the category is only in the first row of each block, which is how merged cells are saved
    unnamed: frozenset[int] = frozenset()  # columns without a name that hold something

    def notes(self, header: list[str], chosen: Columns) -> list[str]:
        """One sentence about each property that the user should know."""
        notes = []
        if self.blank:
            notes.append(f"{self.blank:,} blank row{'s'[: self.blank > 1]} skipped")
        if self.uncategorised and chosen.category is not None:
            name, count = listed([header[chosen.category]]), f"{self.uncategorised:,} of {self.rows:,} rows"
            notes.append(
                f"merged cells: {name} is filled in from the row above in {count}"
                if self.merged
                else f"{name} is empty in {count}"
            )
        names = [header[i] or f"column {i + 1}" for i in chosen.ignored if header[i] or i in self.unnamed]
        return [*notes, f"columns ignored: {listed(names)}"] if names else notes


def survey(grid: Grid, header: list[str], chosen: Columns) -> Survey:
    """Read the rows below the header once.

    Category cells count as merged where the first row has a label, other rows have none, and no label is repeated.
    """
    found, first = Survey(), ""
    labels: Counter[str] = Counter()
    unnamed: set[int] = set()
    suspects = [i for i in chosen.ignored if not header[i]]
    for _, cells, problem in grid:
        if not problem and not any(map(str.strip, cells)):
            found.blank += 1
            continue
        if problem or len(cells) < len(header):
            continue
        found.rows += 1
        unnamed.update(i for i in suspects if cells[i].strip())
        if chosen.category is not None:
            label = cells[chosen.category].strip()
            first = first or (label if found.rows == 1 else "")
            labels[label] += 1
    found.uncategorised = labels.pop("", 0)
    found.merged = bool(first and found.uncategorised) and max(labels.values()) == 1
    found.unnamed = frozenset(unnamed)
    return found


def below(grid: Grid, line: int) -> Grid:
    """The rows after that of `line`."""
    return (row for row in grid if row[0] > line)


def _rows(grid: Grid, header: list[str], chosen: Columns, merged: bool) -> Iterator[Row]:
    def cell(cells: list[str], index: int | None) -> str:
        return cells[index] if index is not None else ""

    above = ""
    for line, cells, problem in grid:
        if not problem and not any(map(str.strip, cells)):
            continue
        if not problem and (len(cells) < len(header) or any(map(str.strip, cells[len(header) :]))):
            problem = f"wrong column count: {len(cells)} instead of {len(header)}"
        if problem:
            yield Row(line, problem=problem, raw=",".join(text[:1000] for text in cells[:20])[:1000])
            continue
        category = cell(cells, chosen.category)
        above = category if category.strip() else above
        yield Row(
            line,
            cell(cells, chosen.id),
            tuple(cells[i] for i in chosen.question),
            tuple(cells[i] for i in chosen.answer),
            above if merged else category,
            cell(cells, chosen.context),
        )
