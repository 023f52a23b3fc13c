"""What readers take and return: column names given by the user, raw rows before validation, and tables of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llm_qa.data.plain_prompt import Messages

LONGEST_LINE_CHARACTERS = 4_000_000  # limit of one row, to bound the memory


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a table, or keys of JSON records, named by the user; with None and () known names are searched."""

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
    """A raw row: texts are not yet normalised or validated; `problem` is set where it cannot be parsed."""

    line: int
    id: str = ""
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    category: str = ""
    context: str = ""
    system: str = ""  # the part of the context that is a conversation's system message
    messages: Messages = ()  # the context of a conversation, message by message
    conversation: str = ""  # the same for all answers that are learned of one conversation
    problem: str = ""
    raw: str = ""


@dataclass(frozen=True)
class Table:
    """An iterator over the rows of a file, with notes for the user about how it was read.

    `columns_used` is False where the file has none of the columns that the user named.
    """

    format: str
    rows: Iterator[Row]
    notes: list[str] = field(default_factory=list)
    columns_used: bool = True
