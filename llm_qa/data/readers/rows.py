"""A row as a file holds it, before anything is judged; what a user may name; and what each reader gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

LONGEST_LINE_CHARACTERS = 4_000_000  # what one row may take of memory, whatever the file says


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a table, or keys of JSON records, named by the user; None and () let sensible names be found."""

    question: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    category: str | None = None
    id: str | None = None
    context: str | None = None

    def flags(self) -> list[str]:
        """The flags that the user gave."""
        return [f"--{name}-column" for name, value in vars(self).items() if value]

    def names(self) -> set[str]:
        """All names that the user gave."""
        names = (*self.question, *self.answer, self.category, self.id, self.context)
        return {name for name in names if name is not None}


@dataclass(frozen=True)
class Row:
    """A row as found: texts not yet normalised or judged; `problem` where it cannot even be taken apart."""

    line: int
    id: str = ""
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    category: str = ""
    context: str = ""
    system: str = ""  # the part of the context that is a conversation's system message
    problem: str = ""
    raw: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of a file, one after another, and what the user should know of how it was read.

    `columns_used` is False where the file has none of the columns that the user named.
    """

    format: str
    rows: Iterator[Row]
    notes: list[str] = field(default_factory=list)
    columns_used: bool = True
