"""Packs in which a share of the documents asks two questions at once, drawn anew for every epoch.

Where two documents are joined, both leave the epoch as single ones, so that an epoch has about the same tokens, and
each document is in it once (twice, where every row is one document), in as many packs (`redrawn_packs.py`). Of a run
with references a joined document has those of its joined question, as it would be asked; none is of the group of either
record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_qa.console import UserError
from llm_qa.data.joining import CONNECTIVES, can_be_joined, join_answers, join_questions, share_a_text
from llm_qa.data.packing import TokenizedPairs
from llm_qa.data.prompts import Document, encode_documents
from llm_qa.data.records import QARecord
from llm_qa.data.redrawn_packs import RedrawnDataset, Replacement
from llm_qa.data.references import References


@dataclass(frozen=True)
class Joined:
    """A question that asks those of two records at once, and both answers."""

    records: tuple[QARecord, QARecord]
    question: str
    answer: str


@dataclass(frozen=True)
class Joining:
    """What documents are joined from: the tokenizer, the records, the share wanted, and the longest document."""

    tokenizer: object
    records: dict[str, QARecord]  # those that can be joined, by id
    share: float  # of an epoch's documents
    max_length: int  # tokens
    references: References | None = None

    def draw(self, singles: TokenizedPairs, epoch: int, seed: int, *, packed: bool) -> list[Replacement]:
        """The joined documents of an epoch; two documents that would be too long together stay as they are.

        Packs get one document for two. Rows of one document each get both orders of the two, so that the rows remain
        as many as they were.
        """
        rng, ids = np.random.default_rng([seed, epoch]), list(map(str, singles.record_ids))
        usable = rng.permutation([i for i, name in enumerate(ids) if name in self.records])
        orders = 1 if packed else 2
        # Of N documents j pairs are joined: to j among N - j documents, or to 2j among N.
        pairs = len(ids) * (self.share / (1 + self.share) if packed else self.share / 2)
        originals, joined = [], []
        for two in usable[: 2 * min(round(pairs), len(usable) // 2)].reshape(-1, 2).tolist():
            first, second = (self.records[ids[i]] for i in two)
            chosen = rng.integers(1 << 30, size=(orders, 5)).tolist()
            if not share_a_text(first, second):
                originals += [two, two[::-1]][:orders]
                both = [(first, second), (second, first)]
                joined += [_join(*pair, how) for pair, how in zip(both, chosen, strict=False)]
        documents = self._encode(joined, epoch)
        drawn = [Replacement(document, tuple(two)) for document, two in zip(documents, originals, strict=True)]
        units = [drawn[i : i + orders] for i in range(0, len(drawn), orders)]
        fitting = [unit for unit in units if all(len(one.document.input_ids) <= self.max_length for one in unit)]
        return [document for unit in fitting for document in unit]

    def _encode(self, joined: Sequence[Joined], epoch: int) -> list[Document]:
        """The documents, each after its references where there are some: the nearest, or others drawn at random."""
        if not self.references:
            return encode_documents(self.tokenizer, [(one.question, one.answer, "") for one in joined])
        # Records that can be joined have nothing before their questions, so the first stands for both.
        part = [(one.records[0], one.question, one.answer) for one in joined]
        found = [self.references.of_epoch(one.records, one.question, epoch) for one in joined]
        return self.references.encode_with(self.tokenizer, part, found, self.max_length)


def joining_of(
    tokenizer, records: Iterable[QARecord], share: float, max_length: int, references: References | None = None
) -> Joining:
    """The Joining of a training split; UserError where it has no two records that can be joined."""
    usable = {record.id: record for record in records if can_be_joined(record)}
    if len(usable) < 2:
        raise UserError(
            f"join_questions {share:g} joins questions of two records without a passage, and the training data has "
            f"{len(usable)} such: set join_questions to 0."
        )
    return Joining(tokenizer, usable, share, max_length, references)


class JoinedDataset(RedrawnDataset):
    """RedrawnDataset of `singles` of which a share is joined two by two."""

    def __init__(
        self, singles: TokenizedPairs, pack_length: int, loss_on: str, seed: int, multiple_of: int, joining: Joining
    ):
        super().__init__(singles, pack_length, loss_on, seed, multiple_of)
        self.joining = joining
        self.capacity = pack_length or joining.max_length
        self.set_epoch(0)

    def draw(self, epoch: int) -> list[Replacement]:
        """The joined documents of an epoch."""
        return self.joining.draw(self.singles, epoch, self.seed, packed=bool(self.pack_length))


def _join(first: QARecord, second: QARecord, chosen: Sequence[int]) -> Joined:
    """Any question and any answer of each record, by five random numbers."""
    parts = (first.questions, second.questions, first.answers, second.answers, CONNECTIVES)
    one, other, answer, another, connective = (
        texts[number % len(texts)] for texts, number in zip(parts, chosen, strict=True)
    )
    return Joined((first, second), join_questions(one, other, connective), join_answers(answer, another))
