"""Groups questions by category, kind of question, length of the reference answer, closeness to training texts.

Each grouping is a function of one row of predictions.jsonl that returns its group; "" leaves the row out. It reads only
fields that are the same for every model, so base and tuned always have the same groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llm_qa.data.groups import connected, text_keys
from llm_qa.language import later

CATEGORY, QUESTION_TYPE = later("category"), later("question type")
ANSWER_LENGTH, CLOSENESS = later("answer length"), "closeness"
CLOSE, NEW = "close to a training text", "not close"
CLOSE_SIMILARITY = 0.8  # of CharacterIndex in contamination.py; from this similarity on, a text counts as trained on

# The first pattern that matches decides, as a question may match several.
QUESTION_TYPES = (
    ("why (왜, 이유, 원인)", r"왜|이유|원인|까닭|때문"),
    ("difference (차이, 비교)", r"차이|비교|다른\s?점|장단점|vs"),
    ("how (어떻게, 방법)", r"어떻게|어떡|방법|어찌|하려면|려면"),
    ("how much, when (얼마, 몇, 언제)", r"얼마|몇|언제|며칠|기간|비용"),
    ("who, where (누구, 어디)", r"누구|누가|어디"),
    ("what (무엇, 어떤)", r"무엇|뭐|뭘|무슨|어떤|어느|뭔|란\?|이란"),
    ("yes or no (…나요?)", r"\?\s*$"),
)
OTHER_TYPE = "request, statement"
LENGTHS = (20, 50, 100, 200)  # characters, upper ends
LENGTH_NAMES = (
    *(f"{low + 1} to {high} characters" for low, high in zip((0, *LENGTHS), LENGTHS, strict=False)),
    f"over {LENGTHS[-1]} characters",
)


def question_type(question: str) -> str:
    """The kind of question by its interrogative word; an approximation by rules."""
    return next((name for name, pattern in QUESTION_TYPES if re.search(pattern, question)), OTHER_TYPE)


def answer_length(references: list[str]) -> str:
    """'21 to 50 characters': the mean length of a question's references."""
    mean = sum(map(len, references)) / len(references)
    return LENGTH_NAMES[sum(mean > high for high in LENGTHS)]


def closeness(row: dict[str, Any]) -> str:
    """CLOSE or NEW by the row's `closest_training`; "" where it was not determined."""
    closest = row.get("closest_training")
    if not closest:
        return ""
    return CLOSE if max(closest["question"], closest["answer"]) >= CLOSE_SIMILARITY else NEW


GROUPINGS: dict[str, Callable[[dict[str, Any]], str]] = {
    CATEGORY: lambda row: row["category"],
    QUESTION_TYPE: lambda row: question_type(row["question"]),
    ANSWER_LENGTH: lambda row: answer_length(row["references"]),
    CLOSENESS: closeness,
}


def group_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Grouping -> group -> indices of `rows`; groupings without groups are left out.

    Lengths are in increasing order, other groups in decreasing order of their records.
    """
    grouped: dict[str, dict[str, list[int]]] = {}
    for grouping, name_of in GROUPINGS.items():
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(name_of(row), []).append(i)
        if grouping == CLOSENESS:
            groups.pop("", None)  # not determined
        if not set(groups) <= {""}:
            records = {name: len({rows[i]["id"] for i in places}) for name, places in groups.items()}
            order = LENGTH_NAMES.index if grouping == ANSWER_LENGTH else lambda name, n=records: (-n[name], name)
            grouped[grouping] = {name: groups[name] for name in sorted(groups, key=order)}
    return grouped


def with_groups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the `group` of their record, the unit of every interval and test.

    evaluate.py writes it. For rows of an older version it is determined from their questions, references and
    contexts, as `--group-by both` does.
    """
    if all("group" in row for row in rows):
        return rows
    keys = [
        [("id", row["id"]), *text_keys([row["question"]], row["references"], row.get("context", ""))] for row in rows
    ]
    members: dict[int, list[str]] = {}
    firsts = connected(keys)
    for row, first in zip(rows, firsts, strict=True):
        members.setdefault(first, []).append(row["id"])
    return [{**row, "group": min(members[first])} for row, first in zip(rows, firsts, strict=True)]
