"""JSON: one record a line (JSONL), or KorQuAD 1.0 / SQuAD 1.1 in one document."""

from __future__ import annotations

import io
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_qa.console import UserError
from llm_qa.data.readers.rows import LONGEST_LINE_CHARACTERS, Row

_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring = 4, 8, 8, 200


def jsonl_rows(text: str) -> Iterator[Row]:
    """Rows of one JSON object a line: records, or objects with "question" and "answer"."""
    for line, content in enumerate(io.StringIO(text, newline="\n"), 1):
        if not content.strip():
            continue
        try:
            if len(content) > LONGEST_LINE_CHARACTERS:
                raise ValueError(f"a line of more than {LONGEST_LINE_CHARACTERS:,} characters")
            yield object_row(line, json.loads(content))
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
        item = value.get(key)
        if item is None:
            return ""
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            return str(item)
        if not isinstance(item, str):
            raise ValueError(f"{key} is not text")
        return item

    return Row(
        line, text("id"), texts("questions", "question"), texts("answers", "answer"), text("category"), text("context")
    )


def korquad_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of KorQuAD JSON: one a question, with its paragraph as context. The line is the count.

    An article, paragraph or question that is not what it should be is one row with a problem.
    """
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}.") from None
    articles = root.get("data") if isinstance(root, dict) else None
    if not isinstance(articles, list):
        raise UserError(
            f'{path} is JSON without KorQuAD\'s "data" list: give KorQuAD JSON or one record a line (JSONL).'
        )
    for line, (context, question) in enumerate(_questions(articles), 1):
        try:
            if isinstance(question, ValueError):
                raise question
            answers = [answer["text"] for answer in question["answers"]]
            value = {**question, "answers": list(dict.fromkeys(answers)), "context": context, "category": ""}
            yield object_row(line, value)
        except (KeyError, TypeError, ValueError) as error:
            shown = context if isinstance(question, ValueError) else question
            yield Row(line, problem=f"not a KorQuAD question ({error})", raw=_short.repr(shown)[:1000])


def _questions(articles: list[Any]) -> Iterator[tuple[Any, Any]]:
    """(context, question) of each question; (the part, ValueError) for a part that holds none."""
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
