"""Merges rows with the same questions to one record, and groups records that share a question or an answer.

The split never divides a group, and evaluation resamples groups: records that share a text tend to be right or wrong
together, and counting them as independent would make chance look like a difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_qa.data.text import leakage_key

if TYPE_CHECKING:
    from llm_qa.data.records import QARecord


def connected(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each item the index of the first one that it shares a key with, directly or through others (union-find)."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[Hashable, int] = {}
    for index, own in enumerate(keys):
        for key in own:
            one, other = root(index), root(first_with.setdefault(key, index))
            parent[max(one, other)] = min(one, other)
    return [root(i) for i in range(len(keys))]


def text_keys(
    questions: Iterable[str],
    answers: Iterable[str],
    passage: str = "",
    conversation: str = "",
    *,
    by_answers: bool = True,
) -> list[tuple[str, str]]:
    """Keys that put records with a common key into one group: questions, answers (if `by_answers`), or the passage.

    Records with a passage are grouped by the passage alone: the same answer (a name) or question ("요약하세요") about
    different passages is no common knowledge. So are the turns of one conversation: many begin with the same greeting.
    """
    if conversation:
        return [("conversation", conversation)]
    if passage:
        return [("passage", leakage_key(passage))]
    keys = [("question", leakage_key(text)) for text in questions]
    return keys + [("answer", leakage_key(text)) for text in answers] if by_answers else keys


def group_records(records: Sequence[QARecord], *, by_answers: bool = True) -> list[list[QARecord]]:
    """Records by `text_keys` that they share. Groups and their records keep the order of `records`."""
    keys = [text_keys(r.questions, r.answers, r.passage, r.conversation, by_answers=by_answers) for r in records]
    groups: dict[int, list[QARecord]] = defaultdict(list)
    for record, first in zip(records, connected(keys), strict=True):
        groups[first].append(record)
    return list(groups.values())


def group_names(records: Sequence[QARecord], *, by_answers: bool = True) -> dict[str, str]:
    """Record id -> the name of its group: the smallest id in it, so that the order of the records changes nothing."""
    groups = group_records(records, by_answers=by_answers)
    return {record.id: min(member.id for member in group) for group in groups for record in group}


def merge_same_questions(records: Sequence[QARecord]) -> tuple[list[QARecord], dict[str, list[str]]]:
    """Records that ask the same questions of the same context become one with all of their answers.

    Returns the records, in the order of the first of each, and {id of a merged record: ids that went into it}. Only
    equal sets of questions are merged: two records that share one of several (a "same as above", for example) remain
    two records of one group, because the answers of one need not be right for the other's questions. Texts are compared
    after normalisation.
    """
    alike: dict[tuple[frozenset[str], str, str], list[QARecord]] = defaultdict(list)
    for record in records:
        alike[frozenset(record.questions), record.context, record.conversation].append(record)
    merged, joined = [], {}
    for members in alike.values():
        first, *others = members
        if others:
            answers = dict.fromkeys(answer for member in members for answer in member.answers)
            category = next((member.category for member in members if member.category), "")
            first = replace(first, answers=tuple(answers), category=category)
            joined[first.id] = [other.id for other in others]
        merged.append(first)
    return merged, joined
