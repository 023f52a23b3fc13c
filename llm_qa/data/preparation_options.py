"""All options that shape prepared data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_qa.console import UserError
from llm_qa.data.documents import LEAST_CHARACTERS, PASSAGE_CHARACTERS
from llm_qa.data.phrasings import RECORDS
from llm_qa.data.readers.rows import ColumnNames


@dataclass(frozen=True)
class PreparationOptions:
    """All options that shape prepared data; the manifest records them."""

    columns: ColumnNames = field(default_factory=ColumnNames)
    cleaning: str = "none"
    stopwords: str | None = None
    stopwords_scope: str | None = None  # with stopwords: none | questions | all; None means all
    validation: float = 0.1
    test: float = 0.1
    seed: int = 42
    group_by: str = "both"  # both | questions
    max_characters: int = 4096
    sheet: str | None = None  # of an Excel workbook; None is the first
    line_breaks: str = "keep"  # inside answers and contexts: keep | join
    learn_turns: str = "last"  # of a conversation: last | all
    documents: str | None = None  # a folder of text and Markdown files
    passage_characters: int | None = None  # with documents; None means PASSAGE_CHARACTERS
    held_out: str = RECORDS  # what the test split holds out: records | phrasings

    def check(self) -> None:
        """Raise UserError naming every bad value at once."""
        problems = []
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"--{name} is {getattr(self, name)} and must be from 0 to below 1")
        if self.validation + self.test >= 1:
            problems.append(f"--validation {self.validation} and --test {self.test} leave no records to train on")
        if self.max_characters < 1:
            problems.append(f"--max-characters is {self.max_characters} and must be at least 1")
        if self.stopwords_scope is not None and self.stopwords is None:
            problems.append(f"--stopwords-scope {self.stopwords_scope} has no effect without --stopwords")
        if self.passage_characters is not None and self.documents is None:
            problems.append(f"--passage-characters {self.passage_characters} has no effect without --documents")
        elif self.passage_characters is not None and self.passage_characters < LEAST_CHARACTERS:
            problems.append(
                f"--passage-characters is {self.passage_characters} and must be at least {LEAST_CHARACTERS}"
            )
        if problems:
            raise UserError("; ".join(problems) + ".")

    @property
    def longest_passage(self) -> int:
        """The most characters of a passage of the documents."""
        return self.passage_characters or PASSAGE_CHARACTERS

    def to_json(self) -> dict[str, Any]:
        """For the manifest: every option, without paths of this machine."""
        stopwords = Path(self.stopwords).name if self.stopwords else None
        options = asdict(self) | {"stopwords": stopwords, "stopwords_scope": self.stopwords_scope or "all"}
        if self.documents is not None:
            folder = Path(self.documents).resolve().name
            options |= {"documents": folder, "passage_characters": self.longest_passage}
        for name in ("learn_turns", "held_out", "documents", "passage_characters"):
            if options[name] == getattr(PreparationOptions(), name):
                del options[name]  # so that data prepared before the option existed are still the same
        return options
