"""Marks of answers (`llm_qa/data/marks.py`) as rows; a better answer replaces the one that was marked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from llm_qa.data.marks import GOOD, is_mark
from llm_qa.data.readers.rows import Row

NOT_BETTER = "marked as bad, without a better answer"
MARKED_ANEW = "the same answer was marked anew later"


def mark_rows(values: Iterable[tuple[int, Any]]) -> Iterator[Row]:
    """A row of each (line, value) of a file of marks; what cannot be learned gets a problem.

    Of several marks of the same answer to the same question the last counts.
    """
    lines = list(values)
    last = {_marked(value): line for line, value in lines if is_mark(value)}
    for line, value in lines:
        if isinstance(value, ValueError):
            problem, raw = value.args
            yield Row(line, problem=problem, raw=raw)
        elif not is_mark(value) or not all(isinstance(value[key], str) for key in ("question", "answer", "better")):
            yield Row(line, problem="not a mark of an answer", raw=json.dumps(value, ensure_ascii=False)[:1000])
        elif last[_marked(value)] != line:
            yield Row(line, questions=(value["question"],), answers=(value["answer"],), problem=MARKED_ANEW)
        elif value["better"].strip():
            yield Row(line, questions=(value["question"],), answers=(value["better"],))
        elif value["mark"] == GOOD:
            yield Row(line, questions=(value["question"],), answers=(value["answer"],))
        else:
            yield Row(line, questions=(value["question"],), answers=(value["answer"],), problem=NOT_BETTER)


def _marked(value: dict[str, Any]) -> str:
    """What a mark is about; as text, so that a damaged value can be a key too."""
    return json.dumps([value["question"], value["answer"]])
