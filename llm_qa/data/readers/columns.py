"""Which columns of a table, or keys of a JSON record, are questions, answers, category, context and id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from llm_qa.console import UserError
from llm_qa.data.text import normalize, visible

# In order of preference. Alpaca's `input` is what its instruction is about; without an instruction it is the question.
QUESTION_NAMES = ("질문", "questions", "question", "q", "instruction", "prompt", "input")
ANSWER_NAMES = ("답변", "답", "answers", "answer", "a", "output", "response", "completion")
CATEGORY_NAMES = ("category", "카테고리", "분류")
CONTEXT_NAMES = ("context", "맥락", "지문", "input")
SYSTEM_NAMES = ("system", "system_prompt")  # an instruction at the start of the context
ID_NAMES = ("id", "번호", "순번", "no", "no.")


def listed(names: list[str]) -> str:
    """Column names as text for a message, limited in number and length, without empty ones."""
    shown = [name[:100] for name in names if name.strip()]
    return visible(", ".join(shown[:20]))[:300] + (", ..." if len(shown) > 20 else "")


def find_columns(header: Sequence[str], known: tuple[str, ...]) -> list[int]:
    """Numbers of the columns `name` or `name_1, name_2 ...` of the first known name that exists; [] for none.

    Failing that, the number of the only column that ends with a known name ("고객 질문", "원장님 답변").
    """
    return list(_find_columns(tuple(header), known))


@lru_cache(maxsize=256)  # the keys of JSON records are mostly the same
def _find_columns(header: tuple[str, ...], known: tuple[str, ...]) -> Sequence[int]:
    for name in known:
        pattern = re.compile(rf"{re.escape(name)}([ _]?\d+)?", re.IGNORECASE)
        if found := [i for i, title in enumerate(header) if pattern.fullmatch(title)]:
            return found
    words = {name for name in known if len(name) > 1}
    ending = [
        i for i, title in enumerate(header) if title.casefold().split()[-1:] and title.casefold().split()[-1] in words
    ]
    return ending if len(ending) == 1 else []


def pick(path: Path, header: list[str], named: tuple[str, ...], known: tuple[str, ...], what: str) -> list[int]:
    """Column numbers: those named by flag, else those found by a known name. Raises UserError if there are none."""
    if named:
        if missing := [name for name in named if normalize(name) not in header]:
            raise UserError(f"{path} has no column {missing[0]!r} (--{what}-column); it has {listed(header)}.")
        return [header.index(normalize(name)) for name in named]
    if found := find_columns(header, known):
        return found
    raise UserError(
        f"{path} has no {what} column that is recognised among {listed(header)}: name it with --{what}-column."
    )


def pick_one(path: Path, header: list[str], named: str | None, known: tuple[str, ...], what: str) -> int | None:
    """The column number of an optional column, or None."""
    if named is not None:
        return pick(path, header, (named,), (), what)[0]
    lowered = [title.casefold() for title in header]
    return next((lowered.index(name) for name in known if name in lowered), None)
