"""JSON: one record per line (JSONL), a list of records, or KorQuAD 1.0 / SQuAD 1.1 in one document.

The keys of a record are chosen like the columns of a table, by flag or by known name; a record may also be a
conversation. A file of marked answers (`marks.py`) is known by its first line.
"""

from __future__ import annotations

import hashlib
import io
import json
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_qa.console import UserError
from llm_qa.data.marks import is_mark
from llm_qa.data.readers.columns import (
    ANSWER_NAMES,
    CATEGORY_NAMES,
    CONTEXT_NAMES,
    ID_NAMES,
    QUESTION_NAMES,
    SYSTEM_NAMES,
    find_columns,
    listed,
)
from llm_qa.data.readers.conversations import CONVERSATION_KEYS, conversation_in, read_conversation
from llm_qa.data.readers.marks import mark_rows
from llm_qa.data.readers.rows import LONGEST_LINE_CHARACTERS, ColumnNames, Row, Table
from llm_qa.data.text import normalize

LARGEST_DOCUMENT_CHARACTERS = 128_000_000  # in one JSON document, which is read into memory as a whole
_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring = 4, 8, 8, 200


def read_json_text(path: Path, text: str, columns: ColumnNames, learn_turns: str = "last") -> Table:
    """The rows of a text that starts with "{" or "[". Raises UserError when its layout is not known."""
    first, _, rest = text.strip("\ufeff \t\r\n").partition("\n")
    if len(first) > LARGEST_DOCUMENT_CHARACTERS:
        raise UserError(
            f"{path} is one JSON line of more than {LARGEST_DOCUMENT_CHARACTERS:,} characters: split it into files."
        )
    try:
        value = json.loads(first)
    except ValueError:
        value = None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be question-answer data.") from None
    if is_mark(value):
        return Table("marks", mark_rows(json_lines(text)), columns_used=False)
    # A complete object in the first line means JSONL, unless that object is a whole KorQuAD document.
    if (isinstance(value, dict) and (rest or not is_korquad(value))) or (value is None and path.suffix == ".jsonl"):
        return _records("JSONL", json_lines(text), value, columns, learn_turns)
    if len(text) > LARGEST_DOCUMENT_CHARACTERS:
        raise UserError(
            f"{path} is one JSON document of more than {LARGEST_DOCUMENT_CHARACTERS:,} characters: split it into files."
        )
    root = parse_document(path, text)
    if isinstance(root, list):
        return _records("JSON list", enumerate(root, 1), next(iter(root), None), columns, learn_turns)
    if not is_korquad(root):
        raise UserError(
            f'{path} is JSON without KorQuAD\'s "data" list: give KorQuAD JSON, a list of records, or one record per '
            "line (JSONL)."
        )
    return Table("KorQuAD JSON", korquad_rows(root["data"]), columns_used=False)


def is_korquad(value: Any) -> bool:
    """True for KorQuAD's outermost object; a record may also have a key `data`."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("data"), list)
        and not find_columns(list(map(normalize, value)), QUESTION_NAMES)
    )


def parse_document(path: Path, text: str) -> Any:
    """The JSON value of a whole file; UserError where it is not valid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}.") from None


def json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line of a JSONL file; for a line that cannot be read the value is the error."""
    for line, content in enumerate(io.StringIO(text, newline="\n"), 1):
        if not content.strip():
            continue
        try:
            if len(content) > LONGEST_LINE_CHARACTERS:
                raise ValueError(f"a line of more than {LONGEST_LINE_CHARACTERS:,} characters")
            yield line, json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, ValueError(f"not a JSON record ({error})", content[:1000])


def _records(kind: str, values: Iterable[tuple[int, Any]], first: Any, columns: ColumnNames, learn_turns: str) -> Table:
    """A table of records; keys named by flag are used where the first record has any of them (other files may not)."""
    used = isinstance(first, dict) and any(normalize(name) in map(normalize, first) for name in columns.names())
    notes: list[str] = []
    rows = _rows(values, columns if used else ColumnNames(), notes, learn_turns)
    return Table(kind, rows, notes, columns_used=used)


def _rows(values: Iterable[tuple[int, Any]], columns: ColumnNames, notes: list[str], learn_turns: str) -> Iterator[Row]:
    """The row of each value; notes about the whole file are added to `notes` at the end."""
    continued, keys, read = 0, dict[str, None](), set[str]()
    for line, value in values:
        try:
            if isinstance(value, ValueError):
                problem, raw = value.args
                yield Row(line, problem=problem, raw=raw)
            else:
                keys.update(dict.fromkeys(value if isinstance(value, dict) else ()))
                rows = object_rows(line, value, columns, read, learn_turns)
                continued += rows[-1].context != rows[-1].system and conversation_in(value) is not None
                yield from rows
        except ValueError as error:
            yield Row(line, problem=str(error), raw=_short.repr(value)[:1000])
    if ignored := [key for key in keys if key not in read]:
        notes.append(f"keys ignored: {listed(ignored)}")
    if continued:
        notes.append(
            f"{continued:,} conversation{'s'[: continued > 1]} with several questions: "
            + (
                "every answer is trained, each with the turns before it as its context"
                if learn_turns == "all"
                else "only the answer to the last is trained, the turns before are its context (--learn-turns all)"
            )
        )


def object_rows(line: int, value: Any, columns: ColumnNames, read: set[str], learn_turns: str = "last") -> list[Row]:
    """The rows of one JSON object, one but for conversations; adds the keys that it reads to `read`.

    ValueError says what is wrong with the object.
    """
    if not isinstance(value, dict):
        raise ValueError("not a JSON record (it is not an object)")
    keys, titles = list(value), list(map(normalize, value))

    def optional(named: str | None, known: tuple[str, ...], taken: Sequence[int] = ()) -> str:
        names = known if named is None else (normalize(named).casefold(),)
        places = [titles.index(title) for name in names for title in titles if title.casefold() == name]
        found = next((keys[i] for i in places if i not in taken), None)
        if found is None:
            return ""
        read.add(found)
        return one_text(found, value[found])

    name, category = optional(columns.id, ID_NAMES), optional(columns.category, CATEGORY_NAMES)
    turns = None if columns.question or columns.answer else conversation_in(value)
    if turns is not None:
        read.update(CONVERSATION_KEYS)
        exchanges = read_conversation(turns, optional(None, SYSTEM_NAMES), learn_turns=learn_turns)
        spoken = json.dumps([(e.question, e.answer) for e in exchanges]).encode()
        conversation = hashlib.sha256(spoken).hexdigest()[:16] if len(exchanges) > 1 else ""
        return [
            Row(line, name, (e.question,), (e.answer,), category, e.context, e.system, e.messages, conversation)
            for e in exchanges
        ]
    questions = keys_of(titles, columns.question, QUESTION_NAMES)
    answers = keys_of(titles, columns.answer, ANSWER_NAMES)
    if missing := [what for what, found in (("question", questions), ("answer", answers)) if not found]:
        flags = " and ".join(f"--{what}-column" for what in missing)
        raise ValueError(f"no {' or '.join(missing)} among its keys ({listed(titles)}), which {flags} can name")
    read.update(keys[i] for i in (*questions, *answers))
    system, context = optional(None, SYSTEM_NAMES), optional(columns.context, CONTEXT_NAMES, questions)
    if not context.startswith(system):  # a prepared record's context already includes it
        context = "\n\n".join(filter(None, [system, context]))
    return [
        Row(
            line,
            name,
            tuple(text for i in questions for text in texts(keys[i], value[keys[i]])),
            tuple(text for i in answers for text in texts(keys[i], value[keys[i]])),
            category,
            context,
            system,
        )
    ]


def keys_of(titles: list[str], named: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    """Numbers of the keys that hold questions, or answers: those named by flag, else those of a known name."""
    if named:
        return [titles.index(normalize(name)) for name in named if normalize(name) in titles]
    return find_columns(titles, known)


def texts(key: str, value: Any) -> list[str]:
    """The texts of a key: one, a list of them, or those of {"text": [..]} as `datasets` writes SQuAD's answers."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    return [one_text(key, item) for item in (value if isinstance(value, list) else [value])]


def one_text(key: str, value: Any) -> str:
    """A text, or a number as text; "" for null. Raises ValueError for anything else."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        raise ValueError(f"{key[:100]} is not text")
    return value


def korquad_rows(articles: list[Any]) -> Iterator[Row]:
    """Rows of KorQuAD's articles: one per question, with its paragraph as context. `line` is the question's number.

    An invalid article, paragraph or question becomes one row with a problem.
    """
    for line, (context, question) in enumerate(_questions(articles), 1):
        try:
            if isinstance(question, ValueError):
                raise question
            answers = [answer["text"] for answer in question["answers"]]
            value = {
                "id": question.get("id"),
                "question": question.get("question"),
                "answers": list(dict.fromkeys(answers)),
                "context": context,
            }
            yield from object_rows(line, value, ColumnNames(), set())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            shown = context if isinstance(question, ValueError) else question
            yield Row(line, problem=f"not a KorQuAD question ({error})", raw=_short.repr(shown)[:1000])


def _questions(articles: list[Any]) -> Iterator[tuple[Any, Any]]:
    """(context, question) of each question; (the part, ValueError) for an invalid part."""
    for article in articles:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield article, ValueError("an article without a list of paragraphs")
            continue
        for paragraph in paragraphs:
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list) or "context" not in paragraph:
                yield paragraph, ValueError("a paragraph without context or list of qas")
                continue
            for question in questions:
                yield paragraph["context"], question
