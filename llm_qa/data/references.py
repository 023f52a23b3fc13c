"""References: the nearest training questions with their answers, put before a question (`retrieval` in a recipe).

A model that is trained with references learns to take from them what fits the question and to leave the rest (RAFT,
Zhang et al. 2024, arXiv:2403.10131; retrieving from the training data itself: Wang et al. 2022, arXiv:2203.08773).
While training, a record's own group (records that share a question, an answer or a passage with it) is never a
reference, and in some cases all references are other records drawn at random, so that copying does not always pay.
Texts are looked up by BM25 over content morphemes; validation and test records never enter the index.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_qa.console import UserError, progress
from llm_qa.data.groups import group_records
from llm_qa.data.morphemes import content_morphemes
from llm_qa.data.plain_prompt import Context, Documents, Questions
from llm_qa.data.prompts import Document, encode_documents
from llm_qa.data.records import QARecord

QUESTION, ANSWER = "참고 질문:", "참고 답변:"


@dataclass(frozen=True)
class Retrieval:
    """Of a recipe: references for a question, share of training questions that get the nearest ones, and the seed."""

    references: int
    hit: float
    seed: int


class References:
    """An index of training records, and the references that it finds for a question, the nearest last."""

    def __init__(self, records: Sequence[QARecord], retrieval: Retrieval):
        import bm25s

        if len(records) < 2:
            raise UserError(
                f"retrieval {retrieval.references} puts other training records before a question, and there are "
                f"{len(records)} records: set retrieval to 0."
            )
        self.records, self.retrieval = list(records), retrieval
        texts = [
            [form for text in (*record.questions, *record.answers) for form in content_morphemes(text)]
            for record in progress(self.records, what="indexing training records", unit="records")
        ]
        self.index = bm25s.BM25()
        # A corpus without any word has no vocabulary; one that no question asks for keeps it from being empty.
        self.index.index([[*words, "\0"] for words in texts], show_progress=False)
        self.words = set(self.index.vocab_dict)
        groups = group_records(self.records)
        numbers = {record.id: number for number, group in enumerate(groups) for record in group}
        self.group = np.array([numbers[record.id] for record in self.records])
        self.place = {record.id: place for place, record in enumerate(self.records)}

    def nearest(self, question: str, count: int, *, beside: QARecord | None = None) -> list[QARecord]:
        """Up to `count` records, the nearest first; none of the group of `beside`. Ties in the records' order."""
        known = [word for word in content_morphemes(question) if word in self.words]
        scores = np.array(self.index.get_scores(known)) if known else np.zeros(len(self.records), np.float32)
        allowed = self._beside(beside)
        order = np.argsort(-scores, kind="stable")
        return [self.records[i] for i in order[allowed[order]][:count]]

    def _beside(self, record: QARecord | None) -> np.ndarray:
        """(records,) bool: those of other groups."""
        if record is None or record.id not in self.place:
            return np.ones(len(self.records), bool)
        return self.group != self.group[self.place[record.id]]

    def asked(self, questions: Questions) -> list[tuple[str, Context]]:
        """Questions with their references before what they already had, as a trained model is asked."""
        count = self.retrieval.references
        return [(question, before(self.nearest(question, count), context)) for question, context in questions]

    def trained(self, record: QARecord, question: str) -> list[QARecord]:
        """References of a record's question, the nearest first; in 1 - hit of the cases other records at random.

        A record that is not in the index, for validation, always has the nearest, as it is asked later.
        """
        draw = random.Random(f"{self.retrieval.seed} {record.id} {question}")
        if record.id not in self.place or draw.random() < self.retrieval.hit:
            return self.nearest(question, self.retrieval.references, beside=record)
        others = np.flatnonzero(self._beside(record)).tolist()
        return [self.records[i] for i in draw.sample(others, min(self.retrieval.references, len(others)))]

    def encode(self, tokenizer, part: Sequence[tuple[QARecord, str, str]], max_length: int) -> list[Document]:
        """(record, question, answer) as documents with references; the furthest are left out where it gets too long."""
        found = [self.trained(record, question) for record, question, _ in part]

        def triples(count: int, places: Sequence[int]) -> Documents:
            chosen = [(*part[i], found[i][:count]) for i in places]
            return [(question, answer, before(own, record.given)) for record, question, answer, own in chosen]

        documents = encode_documents(tokenizer, triples(self.retrieval.references, range(len(part))))
        for count in range(self.retrieval.references - 1, -1, -1):
            long = [i for i, document in enumerate(documents) if len(document.input_ids) > max_length]
            for i, document in zip(long, encode_documents(tokenizer, triples(count, long)), strict=True):
                documents[i] = document
        return documents


def before(references: Sequence[QARecord], context: Context) -> Context:
    """A context with references (the nearest first) at its beginning, the nearest of them last.

    What does not fit into a model is left out from the beginning, so the furthest reference goes first.
    """
    if not references:
        return context
    text = "\n\n".join(f"{QUESTION} {r.questions[0]}\n{ANSWER} {r.answers[0]}" for r in reversed(references))
    if isinstance(context, str):
        return f"{text}\n\n{context}" if context else text
    system = tuple(message for message in context if message[0] == "system")
    rest = tuple(message for message in context if message[0] != "system")
    return (*system, ("passage", text), *rest)
