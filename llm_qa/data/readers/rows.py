"""A row as a file holds it, before anything is judged, and the columns that a user may name."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_LINE_CHARACTERS = 4_000_000  # what one row may take of memory, whatever the file says


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a CSV named by the user; None and () let sensible names be found."""

    question: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    category: str | None = None
    id: str | None = None
    context: str | None = None

    def flags(self) -> list[str]:
        """The flags that the user gave."""
        return [f"--{name}-column" for name, value in vars(self).items() if value]


@dataclass(frozen=True)
class Row:
    """A row as found: texts not yet normalised or judged; `problem` where it cannot even be taken apart."""

    line: int
    id: str = ""
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    category: str = ""
    context: str = ""
    problem: str = ""
    raw: str = ""
