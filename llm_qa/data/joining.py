"""Two questions in one: texts made of two records' questions and answers, and how such questions are recognised."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from llm_qa.data.records import QARecord
from llm_qa.data.text import leakage_key, normalize

# What a second question begins with where people ask two at once.
CONNECTIVES = ("또한, ", "그리고 ", "또, ", "더불어 ", "아울러, ", "추가로, ", "이와 함께, ", "그렇다면 ", "한편, ", "")
# A question's end and the start of another sentence, or a clause that asks and goes on ("무엇이며, 어떻게 ...").
_TWO_SENTENCES = re.compile(r"[?？][\"'”’)]*\s+\S.*[?？]")
_TWO_CLAUSES = re.compile(
    r"(무엇|어떤|어떻게|왜|언제|어디|얼마|누가|몇)[^?？]*(이며|하며|으며|는지|인지|고), "
    r"[^?？]*(무엇|어떤|어떻게|왜|언제|어디|얼마|누가|몇)"
)


def asks_two_questions(text: str) -> bool:
    """Whether a text asks two things: two sentences with a question mark, or two clauses with a question word each."""
    text = normalize(text)
    return bool(_TWO_SENTENCES.search(text) or _TWO_CLAUSES.search(text))


def can_be_joined(record: QARecord) -> bool:
    """Whether a record's question can stand beside another's: not one about a passage or inside a conversation."""
    return not record.given


def share_a_text(one: QARecord, other: QARecord) -> bool:
    """Whether two records are the same, or share a question or an answer, so that joining them would repeat it."""
    texts = [{leakage_key(text) for text in (*record.questions, *record.answers)} for record in (one, other)]
    return one.id == other.id or not texts[0].isdisjoint(texts[1])


def join_questions(first: str, second: str, connective: str) -> str:
    """The text of two questions asked at once."""
    return f"{first} {connective}{second}"


def join_answers(first: str, second: str) -> str:
    """Both answers, one after the other; answers of several lines each begin on a line of their own."""
    return "\n".join((first, second)) if "\n" in first + second else f"{first} {second}"


def joined_records(records: Sequence[QARecord], seed: int) -> list[tuple[QARecord, QARecord, QARecord]]:
    """(first, second, both in one) of held-out records two by two: each that can be joined is in at most one pair.

    The k-th questions are joined, and of the answers the k-th; the shorter list is gone through again.
    """
    rng = random.Random(seed)
    rest = [record for record in records if can_be_joined(record)]
    rng.shuffle(rest)
    joined = []
    while rest:
        first = rest.pop()
        place = next((i for i in reversed(range(len(rest))) if not share_a_text(first, rest[i])), None)
        if place is None:
            continue
        second = rest.pop(place)
        questions, answers = (
            [(one[i % len(one)], other[i % len(other)]) for i in range(max(len(one), len(other)))]
            for one, other in ((first.questions, second.questions), (first.answers, second.answers))
        )
        both = QARecord(
            f"{first.id}+{second.id}",
            tuple(join_questions(*pair, rng.choice(CONNECTIVES)) for pair in questions),
            tuple(join_answers(*pair) for pair in answers),
        )
        joined.append((first, second, both))
    return joined
