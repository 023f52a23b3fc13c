"""References: the nearest training records, and passages of a user's documents, put before a question (`retrieval`).

A model that is trained with references learns to take from them what fits the question and to leave the rest (RAFT,
Zhang et al. 2024, arXiv:2403.10131; retrieving from the training data itself: Wang et al. 2022, arXiv:2203.08773).
While training, a record's own group (records that share a question, an answer or a passage with it) is never a
reference, and in some cases all references are others drawn at random (`reference_packs.py`), so that copying does not
always pay.
Passages are of no group. Texts are looked up by BM25 over content morphemes, or by sentence embeddings
(`reference_index.py`); validation and test records never enter the index.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_qa.console import UserError
from llm_qa.data.documents import Passage
from llm_qa.data.groups import group_records
from llm_qa.data.plain_prompt import Context, Documents, Questions, context_text
from llm_qa.data.prompts import Document, encode_documents
from llm_qa.data.records import QARecord
from llm_qa.data.reference_index import MorphemeIndex, ReferenceIndex, Texts

QUESTION, ANSWER, PASSAGE = "참고 질문:", "참고 답변:", "참고 자료"
Reference = QARecord | Passage


@dataclass(frozen=True)
class Retrieval:
    """Of a recipe: references for a question, share of training questions that get the nearest ones, and the seed."""

    references: int
    hit: float
    seed: int


class References:
    """Training records and passages, and those of them that are put before a question; `make_index` finds them."""

    def __init__(
        self,
        records: Sequence[QARecord],
        retrieval: Retrieval,
        passages: Sequence[Passage] = (),
        make_index: Callable[[Texts], ReferenceIndex] = MorphemeIndex,
    ):
        if len(records) < 2 and not passages:
            raise UserError(
                f"retrieval {retrieval.references} puts other training records before a question, and there are "
                f"{len(records)} records: set retrieval to 0."
            )
        self.all: list[Reference] = [*records, *passages]
        self.retrieval = retrieval
        self.index = make_index([texts_of(reference) for reference in self.all])
        groups = group_records(records)
        numbers = {record.id: number for number, group in enumerate(groups) for record in group}
        self.group = np.array([*(numbers[record.id] for record in records), *(-1 for _ in passages)])
        self.place = {record.id: place for place, record in enumerate(records)}

    def nearest(self, question: str, count: int, *, beside: Sequence[QARecord] = ()) -> list[Reference]:
        """Up to `count` references, the nearest first; none of the groups of `beside`. Ties in the order of all."""
        allowed = self._beside(beside)
        order = np.argsort(-self.index.scores(question), kind="stable")
        return [self.all[i] for i in order[allowed[order]][:count]]

    def _beside(self, records: Sequence[QARecord]) -> np.ndarray:
        """(references,) bool: those that are of no record's group."""
        own = [self.group[self.place[record.id]] for record in records if record.id in self.place]
        return ~np.isin(self.group, own)

    def asked(self, questions: Questions) -> list[tuple[str, Context]]:
        """Questions with their references before what they already had, as a trained model is asked."""
        count = self.retrieval.references
        return [(question, before(self.nearest(question, count), context)) for question, context in questions]

    def drawn(self, of: Sequence[QARecord], question: str, epoch: int) -> list[Reference] | None:
        """References at random that a question of these records has in an epoch; None where it has the nearest."""
        draw = random.Random(f"{self.retrieval.seed} {epoch} {'+'.join(record.id for record in of)} {question}")
        if draw.random() < self.retrieval.hit:
            return None
        others = np.flatnonzero(self._beside(of)).tolist()
        return [self.all[i] for i in draw.sample(others, min(self.retrieval.references, len(others)))]

    def of_epoch(self, of: Sequence[QARecord], question: str, epoch: int) -> list[Reference]:
        """The references that a question of these records has in an epoch: the nearest, or others at random."""
        drawn = self.drawn(of, question, epoch)
        return self.nearest(question, self.retrieval.references, beside=of) if drawn is None else drawn

    def encode(self, tokenizer, part: Sequence[tuple[QARecord, str, str]], max_length: int) -> list[Document]:
        """(record, question, answer) as documents with the nearest references; none of the record's own group."""
        count = self.retrieval.references
        found = [self.nearest(question, count, beside=[record]) for record, question, _ in part]
        return self.encode_with(tokenizer, part, found, max_length)

    def encode_with(
        self,
        tokenizer,
        part: Sequence[tuple[QARecord, str, str]],
        found: Sequence[Sequence[Reference]],
        max_length: int,
    ) -> list[Document]:
        """(record, question, answer) with references; the furthest are left out where a document gets too long."""

        def triples(count: int, places: Sequence[int]) -> Documents:
            chosen = [(*part[i], found[i][:count]) for i in places]
            return [(question, answer, before(own, record.given)) for record, question, answer, own in chosen]

        documents = encode_documents(tokenizer, triples(self.retrieval.references, range(len(part))))
        for count in range(self.retrieval.references - 1, -1, -1):
            long = [i for i, document in enumerate(documents) if len(document.input_ids) > max_length]
            for i, document in zip(long, encode_documents(tokenizer, triples(count, long)), strict=True):
                documents[i] = document
        return documents


def texts_of(reference: Reference) -> tuple[str, ...]:
    """What a reference is found by."""
    return (reference.text,) if isinstance(reference, Passage) else (*reference.questions, *reference.answers)


def rendered(reference: Reference) -> str:
    """A reference as it stands before a question."""
    if isinstance(reference, Passage):
        return f"{PASSAGE} ({reference.source}): {reference.text}"
    return f"{QUESTION} {reference.questions[0]}\n{ANSWER} {reference.answers[0]}"


def named(references: Sequence[Reference], context: Context) -> list[str]:
    """Names of those references, the nearest first, that a context holds whole: a file, or a training record's id."""
    text = context_text(context)
    held = [reference for reference in references if rendered(reference) in text]
    return list(dict.fromkeys(r.source if isinstance(r, Passage) else f"training record {r.id}" for r in held))


def before(references: Sequence[Reference], context: Context) -> Context:
    """A context with references (the nearest first) at its beginning, the nearest of them last.

    What does not fit into a model is left out from the beginning, so the furthest reference goes first.
    """
    if not references:
        return context
    text = "\n\n".join(map(rendered, reversed(references)))
    if isinstance(context, str):
        return f"{text}\n\n{context}" if context else text
    system = tuple(message for message in context if message[0] == "system")
    rest = tuple(message for message in context if message[0] != "system")
    return (*system, ("passage", text), *rest)
