"""Files -> rows -> records. Strict: every row is kept or rejected with its file, line and reason.

Formats are told by content: wide CSV (질문_1.. 답변_1..), long CSV (one question and one answer column), JSONL records,
KorQuAD / SQuAD JSON. An own reader on the csv module, because `datasets` takes "NA" for nothing, lets control
characters pass and shifts every column of a row with one comma too many, in silence.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_qa.console import UserError, progress
from llm_qa.data.records import QARecord
from llm_qa.data.text import comparable, normalize
from llm_qa.files import sha256_file

LARGEST_FILE_BYTES = 2 * 1024**3
LARGEST_CELL_CHARACTERS = 1_000_000
MOST_COLUMNS = 1_000
MAGIC = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
}
QUESTION_NAMES = ("질문", "question", "q", "instruction", "prompt")
ANSWER_NAMES = ("답변", "답", "answer", "a", "output", "response")
CATEGORY_NAMES = ("category", "카테고리", "분류")
CONTEXT_NAMES = ("context", "맥락", "지문")


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a CSV named by the user; None and () let sensible names be found."""

    question: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    category: str | None = None
    id: str | None = None
    context: str | None = None


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


@dataclass
class ReadResult:
    """rows_read == len(records) + len(rejected), always."""

    records: list[QARecord] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    rows_read: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)


def read_files(
    paths: list[str | Path], columns: ColumnNames | None = None, *, max_characters: int = 4096
) -> ReadResult:
    """Read several files into records.

    Raises UserError for a file that is not what it claims (missing, empty, binary, HTML, unknown layout) and when no
    row of all files can be used.
    """
    result = ReadResult()
    seen: dict[tuple, str] = {}
    ids: set[str] = set()
    for path in map(Path, paths):
        text, encoding = decode(path)
        kind, rows = find_format(path, text, columns or ColumnNames())
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
                shown = row.raw or " | ".join([*row.questions, *row.answers])
                result.rejected.append(Rejected(path.name, row.line, reason, visible(shown)[:200]))
                continue
            result.records.append(unique_id(record, path.stem, row.line, ids))
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
    if not result.records:
        first = result.rejected[0]
        raise UserError(
            f"None of the {result.rows_read:,} rows can be used; "
            f"the first, {first.file}, line {first.line}: {first.reason}."
        )
    return result


def decode(path: Path) -> tuple[str, str]:
    """(text, name of the encoding) of a file: UTF-8 with or without BOM, UTF-16 with BOM, else cp949.

    Raises UserError for anything that is no text.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder without prepared data: name its files.")
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise UserError(f"{path} has more than {LARGEST_FILE_BYTES:,} bytes: split it into several files.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not data.strip():
        raise UserError(f"{path} is empty.")
    for magic, what in MAGIC.items():
        if data.startswith(magic):
            raise UserError(f"{path} is {what}, not text: save it as CSV in UTF-8.")
    encodings = [("utf-8-sig", "UTF-8 with BOM")] if data.startswith(b"\xef\xbb\xbf") else []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings.append(("utf-16", "UTF-16"))
    for name, title in [*encodings, ("utf-8", "UTF-8"), ("cp949", "cp949")]:
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        if text.count("\0") > len(text) // 100:
            break
        if re.match(r"\s*<(!doctype|html|\?xml)", text[:200], re.IGNORECASE):
            raise UserError(f"{path} is a web page, not data (a download that asked for a login?).")
        return text, title
    raise UserError(f"{path} is neither UTF-8 nor cp949 text: save it as CSV in UTF-8.")


def find_format(path: Path, text: str, columns: ColumnNames) -> tuple[str, Iterator[Row]]:
    """(name, rows) of a text by what it looks like. Raises UserError when it is none of the known layouts."""
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith(("{", "[")):
        first_line = start.partition("\n")[0].strip()
        try:
            first = json.loads(first_line)
            whole = not isinstance(first, dict) or not isinstance(first.get("data", ""), str)
        except ValueError:
            whole = path.suffix != ".jsonl"
        except RecursionError:
            raise UserError(f"{path} is nested too deeply to be question-answer data.") from None
        return ("KorQuAD JSON", korquad_rows(path, text)) if whole else ("JSONL", jsonl_rows(text))
    return csv_rows(path, text, columns)


def csv_rows(path: Path, text: str, columns: ColumnNames) -> tuple[str, Iterator[Row]]:
    """Rows of a CSV with a header; wide when it has several question or answer columns."""
    header_line = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",\t;", key=header_line.count)
    csv.field_size_limit(LARGEST_CELL_CHARACTERS)
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [normalize(name) for name in next(row for row in reader if any(cell.strip() for cell in row))]
    except (csv.Error, StopIteration) as error:
        raise UserError(f"{path} has no readable header: {error or 'no line with text'}.") from None
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{path} has {len(header):,} columns: this is not question-answer data.")
    questions = pick(path, header, columns.question, QUESTION_NAMES, "question")
    answers = pick(path, header, columns.answer, ANSWER_NAMES, "answer")
    if both := set(questions) & set(answers):
        raise UserError(f"{path}: column {header[min(both)]!r} cannot be both --question-column and --answer-column.")
    category = pick_one(path, header, columns.category, CATEGORY_NAMES, "category")
    context = pick_one(path, header, columns.context, CONTEXT_NAMES, "context")
    identity = pick_one(path, header, columns.id, ("id",), "id")
    used = {*questions, *answers, category, context, identity}
    ignored = [name for i, name in enumerate(header) if i not in used]
    kind = "wide CSV" if len(questions) + len(answers) > 2 else "long CSV"
    kind += f" (columns ignored: {', '.join(ignored)})" if ignored else ""

    def cell(row: list[str], index: int | None) -> str:
        return row[index] if index is not None else ""

    def rows() -> Iterator[Row]:
        begun, rest = reader.line_num, csv.reader(lines[reader.line_num :], delimiter=delimiter, strict=True)
        while True:
            line = begun + rest.line_num + 1
            try:
                row = next(rest)
            except StopIteration:
                return
            except csv.Error as error:  # this line is rejected alone; reading goes on with the next
                yield Row(line, problem=f"not readable as CSV ({error})", raw=lines[line - 1][:1000])
                begun, rest = line, csv.reader(lines[line:], delimiter=delimiter, strict=True)
                continue
            if not any(value.strip() for value in row):
                continue
            if len(row) != len(header):
                yield Row(
                    line,
                    problem=f"wrong column count: {len(row)} instead of {len(header)}",
                    raw=delimiter.join(row[:20])[:1000],
                )
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


def pick(path: Path, header: list[str], named: tuple[str, ...], known: tuple[str, ...], what: str) -> list[int]:
    """Column numbers: those named by flag, else `name` or `name_1, name_2 ...` of a known name. UserError if none."""
    if named:
        if missing := [name for name in named if normalize(name) not in header]:
            raise UserError(f"{path} has no column {missing[0]!r} (--{what}-column); it has {', '.join(header[:20])}.")
        return [header.index(normalize(name)) for name in named]
    for name in known:
        pattern = re.compile(rf"{re.escape(name)}([ _]?\d+)?", re.IGNORECASE)
        if found := [i for i, title in enumerate(header) if pattern.fullmatch(title)]:
            return found
    raise UserError(
        f"{path} has no {what} column that can be recognised among {', '.join(map(visible, header[:20]))[:300]}: "
        f"name it with --{what}-column."
    )


def pick_one(path: Path, header: list[str], named: str | None, known: tuple[str, ...], what: str) -> int | None:
    """The column number of an optional column, or None."""
    if named is not None:
        return pick(path, header, (named,), (), what)[0]
    lowered = [title.casefold() for title in header]
    return next((lowered.index(name) for name in known if name in lowered), None)


def jsonl_rows(text: str) -> Iterator[Row]:
    """Rows of one JSON object a line: records, or objects with "question" and "answer"."""
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
            yield object_row(line, value)
        except (ValueError, RecursionError) as error:
            yield Row(line, problem=f"not a JSON record ({error})", raw=content[:1000])


def object_row(line: int, value: Any) -> Row:
    """A Row from one JSON object; ValueError says what is wrong with it."""
    if not isinstance(value, dict):
        raise ValueError("the line is not an object")

    def texts(plural: str, singular: str) -> tuple[str, ...]:
        items = value.get(plural, value.get(singular, []))
        items = [items] if isinstance(items, str) else items
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{plural} is not a list of texts")
        return tuple(items)

    def text(key: str) -> str:
        item = value.get(key) or ""
        if isinstance(item, (int, float)):
            item = str(item)
        if not isinstance(item, str):
            raise ValueError(f"{key} is not text")
        return item

    return Row(
        line, text("id"), texts("questions", "question"), texts("answers", "answer"), text("category"), text("context")
    )


def korquad_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of KorQuAD 1.0 / SQuAD 1.1 JSON: one a question, with its paragraph as context. The line is the count."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}.") from None
    articles = root.get("data") if isinstance(root, dict) else None
    if not isinstance(articles, list):
        raise UserError(
            f'{path} is JSON without KorQuAD\'s "data" list: give KorQuAD JSON or one record a line (JSONL).'
        )
    number = 0
    for article in articles:
        paragraphs = article.get("paragraphs", []) if isinstance(article, dict) else []
        for paragraph in paragraphs if isinstance(paragraphs, list) else []:
            questions = paragraph.get("qas", []) if isinstance(paragraph, dict) else []
            for question in questions if isinstance(questions, list) else []:
                number += 1
                try:
                    answers = [answer["text"] for answer in question["answers"]]
                    value = {**question, "answers": list(dict.fromkeys(answers)), "context": paragraph["context"]}
                    value["category"] = ""
                    yield object_row(number, value)
                except (KeyError, TypeError, ValueError) as error:
                    yield Row(number, problem=f"not a KorQuAD question ({error})", raw=str(question)[:1000])


def judge(row: Row, max_characters: int) -> tuple[QARecord | None, str]:
    """(record, "") of a row that can be used, or (None, the reason) of one that cannot."""
    if row.problem:
        return None, row.problem
    for text in (row.id, *row.questions, *row.answers, row.category, row.context):
        if (found := forbidden(text)) is not None:
            return None, f"control character or broken text (U+{ord(found):04X})"
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


def forbidden(text: str) -> str | None:
    """The first character that no text should have: a control character, a lone surrogate, U+FFFD; None without one."""
    if text.isascii() and text.isprintable():
        return None
    for character in text:
        if character in "\t\n\r\u2028\u2029\x0b\x0c\x85":
            continue  # white space; normalisation folds it
        if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cs"):
            return character
    return None


def visible(text: str) -> str:
    """Text that is safe to print and to store: broken characters as escapes."""
    return "".join(f"\\u{ord(c):04x}" if forbidden(c) else c for c in text)


def unique_id(record: QARecord, stem: str, line: int, taken: set[str]) -> QARecord:
    """The record with an id that no other has: its own, else one made of its file and line."""
    name = record.id or f"{stem}-{line}"
    number, candidate = 2, name
    while candidate in taken:
        candidate, number = f"{name}#{number}", number + 1
    taken.add(candidate)
    return QARecord(candidate, record.questions, record.answers, record.category, record.context)
