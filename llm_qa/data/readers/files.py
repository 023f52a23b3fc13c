"""Reads files into records. Strict: every row is kept or rejected with its file, line and reason.

Formats are recognised by content: CSV and Excel workbooks, wide (질문_1.. 답변_1..) or long (one question, one answer
column), JSON records in several shapes, KorQuAD / SQuAD JSON. The CSV reader is built on the csv module, because
`datasets` silently reads "NA" as missing, accepts control characters and shifts the columns of a row with an extra
comma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_qa.console import UserError, progress
from llm_qa.data.encoding import decode_bytes, read_bytes
from llm_qa.data.groups import merge_same_questions
from llm_qa.data.readers.columns import listed
from llm_qa.data.readers.csv import all_rows
from llm_qa.data.readers.json import read_json_text
from llm_qa.data.readers.rows import ColumnNames, Row, Table
from llm_qa.data.readers.table import read_table
from llm_qa.data.readers.xlsx import ZIP, read_sheet
from llm_qa.data.records import QARecord
from llm_qa.data.text import LINE_BREAKS, invalid_reason, normalize, visible
from llm_qa.files import sha256_file
from llm_qa.language import tr


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why."""

    file: str
    line: int
    reason: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """A line of rejected.jsonl."""
        return dict(vars(self))


@dataclass
class ReadResult:
    """rows_read == len(records) + merged_rows + len(rejected), always; each of `files` counts the first two as kept."""

    records: list[QARecord] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    rows_read: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, tuple[int, int]] = field(default_factory=dict)  # record id -> (number in `files`, line)
    merged: dict[str, list[str]] = field(default_factory=dict)  # record id -> ids of the rows merged into it

    @property
    def merged_rows(self) -> int:
        """Rows that were merged into the record of another row."""
        return sum(map(len, self.merged.values()))

    def merge_same_questions(self) -> None:
        """Merge rows with the same questions into one record (`groups.merge_same_questions`)."""
        self.records, self.merged = merge_same_questions(self.records)

    def reject(self, emptied: list[QARecord], reason: str) -> None:
        """Move records that are empty after cleaning to the rejected rows, and correct all counts."""
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
    paths: Sequence[str | Path],
    columns: ColumnNames | None = None,
    *,
    max_characters: int = 4096,
    sheet: str | None = None,
    line_breaks: str = "keep",
    learn_turns: str = "last",
) -> ReadResult:
    """Read several files into records.

    `sheet` applies to Excel workbooks, `line_breaks` (a key of LINE_BREAKS) to answers and contexts, `learn_turns`
    (last or all: which answers become records) to conversations. A row is a duplicate of an earlier one where all
    texts are equal except for white space.

    Raises UserError for a file that cannot be used (missing, empty, binary, HTML, unknown layout), when columns or a
    sheet are named that no file has, and when no row of any file can be used.
    """
    columns = columns or ColumnNames()
    result = ReadResult()
    seen: dict[tuple, str] = {}
    numbers: dict[str, int] = {}
    columns_used = False
    for file_number, path in enumerate(map(Path, paths)):
        table, encoding = open_table(path, columns, sheet, learn_turns)
        columns_used |= table.columns_used
        before = (len(result.records), len(result.rejected))
        for row in progress(table.rows, what=tr("reading {file}", file=path.name), unit="rows"):
            result.rows_read += 1
            record, reason = validate(row, max_characters, LINE_BREAKS[line_breaks])
            if record is not None:
                # Joined to one line, so that texts that differ only in line breaks are duplicates.
                texts = (frozenset(map(normalize, each)) for each in (record.questions, record.answers))
                key = (*texts, normalize(record.context))
                if key in seen:
                    record, reason = None, f"duplicate of {seen[key]}"
                else:
                    seen[key] = f"{path.name}, line {row.line}"
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
                "format": table.format,
                "encoding": encoding,
                "sha256": sha256_file(path),
                "rows_read": kept + rejected,
                "kept": kept,
                "rejected": rejected,
                "notes": table.notes,
            }
        )
    assert result.rows_read == len(result.records) + len(result.rejected)
    if columns.flags() and not columns_used:
        raise UserError(
            f"{', '.join(columns.flags())} names a column or key that {result.files[0]['file']} "
            f"({result.files[0]['format']}) does not have: leave it out, or name one that it has."
        )
    if sheet is not None and not any("Excel" in account["format"] for account in result.files):
        raise UserError(f"--sheet {sheet} names a sheet of an Excel workbook, and no file is one: leave it out.")
    if not result.records:
        first = result.rejected[0]
        raise UserError(
            f"None of the {result.rows_read:,} rows can be used; "
            f"the first, {first.file}, line {first.line}: {first.reason}."
        )
    return result


def open_table(
    path: Path, columns: ColumnNames, sheet: str | None = None, learn_turns: str = "last"
) -> tuple[Table, str]:
    """(table, name of the encoding) of a file by its content; UserError when its layout is not known."""
    data = read_bytes(path)
    if data.startswith(ZIP):
        rows, notes, others = read_sheet(path, data, sheet)
        try:
            table = read_table(path, "Excel", lambda: iter(rows), columns)
        except UserError as error:
            if not others:
                raise
            raise UserError(f"{str(error).rstrip('.')}, or another sheet with --sheet ({listed(others)}).") from None
        return replace(table, notes=[*notes, *table.notes]), "-"
    text, encoding = decode_bytes(path, data)
    if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return read_json_text(path, text, columns, learn_turns), encoding
    return read_table(path, "CSV", lambda: all_rows(text), columns), encoding


def validate(row: Row, max_characters: int, tidy: Callable[[str], str]) -> tuple[QARecord | None, str]:
    """(record, "") of a row that can be used, or (None, the reason) of one that cannot.

    `tidy` normalises answers and contexts; a question is one line.
    """
    if row.problem:
        return None, row.problem
    for text in (row.id, *row.questions, *row.answers, row.category, row.context):
        if reason := invalid_reason(text):
            return None, reason
    questions = tuple(dict.fromkeys(text for text in map(normalize, row.questions) if text))
    answers = tuple(dict.fromkeys(text for text in map(tidy, row.answers) if text))
    context = tidy(row.context)
    if not questions:
        return None, "empty question"
    if not answers:
        return None, "no answer"
    longest = max(map(len, questions)) + max(map(len, answers)) + len(context)
    if longest > max_characters:
        return None, f"too long for the context: {longest:,} characters, at most {max_characters:,} (--max-characters)"
    messages = tuple((role, tidy(text)) for role, text in row.messages)
    name, category = normalize(row.id), normalize(row.category)
    system = tidy(row.system)
    return QARecord(name, questions, answers, category, context, system, messages, row.conversation), ""


def unique_id(name: str, numbers: dict[str, int]) -> str:
    """`name`, or `name#2`, `name#3` ... where it is taken; `numbers` keeps the last number of each name."""
    candidate = name
    while candidate in numbers:
        numbers[name] += 1
        candidate = f"{name}#{numbers[name]}"
    numbers[candidate] = 1
    return candidate
