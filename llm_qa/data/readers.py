"""Files -> rows -> records. Strict: every row is kept or rejected with its file, line and reason.

Formats are told by content: wide CSV (질문_1.. 답변_1..), long CSV (one question and one answer column), JSONL records,
KorQuAD / SQuAD JSON. An own reader on the csv module, because `datasets` takes "NA" for nothing, lets control
characters pass and shifts every column of a row with one comma too many, in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_qa.console import UserError, progress
from llm_qa.data.csv_rows import csv_rows
from llm_qa.data.decoding import decode
from llm_qa.data.groups import merge_same_questions
from llm_qa.data.json_rows import jsonl_rows, korquad_rows
from llm_qa.data.records import QARecord
from llm_qa.data.rows import ColumnNames, Row
from llm_qa.data.text import comparable, flaw, normalize, visible
from llm_qa.files import sha256_file

LARGEST_DOCUMENT_CHARACTERS = 128_000_000  # of one JSON document, which is in memory as a whole


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why."""

    file: str
    line: int
    reason: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """As a line of rejected.jsonl."""
        return dict(vars(self))


@dataclass
class ReadResult:
    """rows_read == len(records) + merged_rows + len(rejected), always; each of `files` counts the first two as kept."""

    records: list[QARecord] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    rows_read: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, tuple[int, int]] = field(default_factory=dict)  # record id -> (number in `files`, line)
    merged: dict[str, list[str]] = field(default_factory=dict)  # record id -> ids of the rows that went into it

    @property
    def merged_rows(self) -> int:
        """Rows that were kept without being a record of their own."""
        return sum(map(len, self.merged.values()))

    def merge_same_questions(self) -> None:
        """Make one record of rows that ask the same (`groups.merge_same_questions`)."""
        self.records, self.merged = merge_same_questions(self.records)

    def reject(self, emptied: list[QARecord], reason: str) -> None:
        """Move records that turned out unusable to the rejected rows, in every account."""
        gone = {record.id for record in emptied}
        self.records = [record for record in self.records if record.id not in gone]
        for record in emptied:
            for identity in (record.id, *self.merged.pop(record.id, ())):
                number, line = self.origins[identity]
                account = self.files[number]
                account["kept"] -= 1
                account["rejected"] += 1
                self.rejected.append(Rejected(account["file"], line, reason, " | ".join(record.questions)[:200]))


def read_files(
    paths: list[str | Path], columns: ColumnNames | None = None, *, max_characters: int = 4096
) -> ReadResult:
    """Read several files into records.

    Raises UserError for a file that is not what it claims (missing, empty, binary, HTML, unknown layout), when columns
    are named and no file has any, and when no row of all files can be used.
    """
    columns = columns or ColumnNames()
    result = ReadResult()
    seen: dict[tuple, str] = {}
    numbers: dict[str, int] = {}
    for file_number, path in enumerate(map(Path, paths)):
        text, encoding = decode(path)
        kind, rows = find_format(path, text, columns)
        before = (len(result.records), len(result.rejected))
        for row in progress(rows, what=f"reading {path.name}", unit="rows"):
            result.rows_read += 1
            record, reason = judge(row, max_characters)
            if record is not None:
                key = (
                    frozenset(map(comparable, record.questions)),
                    frozenset(map(comparable, record.answers)),
                    record.context,
                )
                here = f"{path.name}, line {row.line}"
                if key in seen:
                    record, reason = None, f"duplicate of {seen[key]}"
                else:
                    seen[key] = here
            if record is None:
                shown = row.raw or " | ".join(text[:200] for text in [*row.questions, *row.answers])
                result.rejected.append(Rejected(path.name, row.line, reason, visible(shown[:200])[:200]))
                continue
            record = replace(record, id=unique_id(record.id or f"{path.stem}-{row.line}", numbers))
            result.records.append(record)
            result.origins[record.id] = (file_number, row.line)
        kept, rejected = len(result.records) - before[0], len(result.rejected) - before[1]
        if kept + rejected == 0:
            raise UserError(f"{path} has a header but no rows.")
        result.files.append(
            {
                "file": path.name,
                "format": kind,
                "encoding": encoding,
                "sha256": sha256_file(path),
                "rows_read": kept + rejected,
                "kept": kept,
                "rejected": rejected,
            }
        )
    assert result.rows_read == len(result.records) + len(result.rejected)
    if columns.flags() and not any("CSV" in item["format"] for item in result.files):
        raise UserError(
            f"{', '.join(columns.flags())} names columns of a CSV and {result.files[0]['file']} is "
            f"{result.files[0]['format']}: leave it out."
        )
    if not result.records:
        first = result.rejected[0]
        raise UserError(
            f"None of the {result.rows_read:,} rows can be used; "
            f"the first, {first.file}, line {first.line}: {first.reason}."
        )
    return result


def find_format(path: Path, text: str, columns: ColumnNames) -> tuple[str, Iterator[Row]]:
    """(name, rows) of a text by what it looks like. Raises UserError when it is none of the known layouts."""
    start = text.lstrip("\ufeff \t\r\n")
    if not start.startswith(("{", "[")):
        return csv_rows(path, text, columns)
    first_line = start.partition("\n")[0].strip()
    if len(first_line) > LARGEST_DOCUMENT_CHARACTERS:
        raise UserError(
            f"{path} is one JSON line of more than {LARGEST_DOCUMENT_CHARACTERS:,} characters: split it into files."
        )
    try:
        first = json.loads(first_line)
        whole = not isinstance(first, dict) or not isinstance(first.get("data", ""), str)
    except ValueError:
        whole = path.suffix != ".jsonl"
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be question-answer data.") from None
    if not whole:
        return "JSONL", jsonl_rows(text)
    if len(text) > LARGEST_DOCUMENT_CHARACTERS:
        raise UserError(
            f"{path} is one JSON document of more than {LARGEST_DOCUMENT_CHARACTERS:,} characters: split it into files."
        )
    return "KorQuAD JSON", korquad_rows(path, text)


def judge(row: Row, max_characters: int) -> tuple[QARecord | None, str]:
    """(record, "") of a row that can be used, or (None, the reason) of one that cannot."""
    if row.problem:
        return None, row.problem
    for text in (row.id, *row.questions, *row.answers, row.category, row.context):
        if reason := flaw(text):
            return None, reason
    questions = tuple(dict.fromkeys(text for text in map(normalize, row.questions) if text))
    answers = tuple(dict.fromkeys(text for text in map(normalize, row.answers) if text))
    context = normalize(row.context)
    if not questions:
        return None, "empty question"
    if not answers:
        return None, "no answer"
    longest = max(map(len, questions)) + max(map(len, answers)) + len(context)
    if longest > max_characters:
        return None, f"too long for the context: {longest:,} characters, at most {max_characters:,} (--max-characters)"
    return QARecord(normalize(row.id), questions, answers, normalize(row.category), context), ""


def unique_id(name: str, numbers: dict[str, int]) -> str:
    """`name`, or `name#2`, `name#3` ... where it is taken; `numbers` remembers, for each name, where to go on."""
    candidate = name
    while candidate in numbers:
        numbers[name] += 1
        candidate = f"{name}#{numbers[name]}"
    numbers[candidate] = 1
    return candidate
