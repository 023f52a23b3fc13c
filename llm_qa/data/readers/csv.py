"""CSV text -> rows of cells. Strict, in linear time; a stray quote only spoils its own row."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator

from llm_qa.data.readers.rows import LONGEST_LINE_CHARACTERS
from llm_qa.data.text import invalid_reason

LARGEST_CELL_CHARACTERS = 1_000_000
MOST_COLUMNS = 1_000
MOST_LINES = 1_000  # in one row, by line breaks within quotes
NEAR_LINES = 20


def find_delimiter(text: str) -> str:
    """Comma, tab or semicolon: the most frequent in the first line that has any (a title above a table has none)."""
    for line in text[:LARGEST_CELL_CHARACTERS].splitlines()[:20]:
        if found := max(",\t;", key=line.count) if any(sign in line for sign in ",\t;") else "":
            return found
    return ","


def all_rows(text: str) -> Iterator[tuple[int, list[str], str]]:
    """(first line, cells, problem) of each row, including the header and rows of blank cells, without empty lines.

    A row that cannot be parsed has a problem, and its first line as its only cell; reading continues with the next
    line. Where such a row extended over many lines (an unclosed quote), these are read one line at a time: trying a
    quoted row from each of them would take quadratic time.
    """
    delimiter = find_delimiter(text)
    csv.field_size_limit(LARGEST_CELL_CHARACTERS)
    source = io.StringIO(text, newline="")
    given_back: deque[str] = deque()
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
        if problem or cells:
            yield line, cells, problem
        line += len(taken)
        alone = max(alone - len(taken), 0)


def split_rows(text: str) -> Iterator[tuple[int, list[str], str]]:
    """`all_rows` without those of blank cells."""
    return ((line, cells, problem) for line, cells, problem in all_rows(text) if problem or any(map(str.strip, cells)))


def header_problem(cells: list[str]) -> str:
    """Why cells cannot be column names, or "" when they can."""
    if len(cells) > MOST_COLUMNS:
        return f"{len(cells):,} columns, which is not question-answer data"
    return next(filter(None, map(invalid_reason, cells)), "")
