"""Packs in which a share of the documents asks two questions at once, drawn anew for every epoch.

Where two documents are joined, both leave the epoch as single ones, so that an epoch has about the same tokens, and
each document is in it once. It has exactly the packs of the single documents, hence the same updates: a pack that is
not needed is empty, and where joined documents would need more, fewer are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_qa.console import UserError
from llm_qa.data.joining import CONNECTIVES, can_be_joined, join_answers, join_questions, share_a_text
from llm_qa.data.packing import PackedDataset, Packs, TokenizedPairs, pack_documents
from llm_qa.data.prompts import Document, encode_documents
from llm_qa.data.records import QARecord


@dataclass(frozen=True)
class Joining:
    """What documents are joined from: the tokenizer, the records, the share wanted, and the longest document."""

    tokenizer: object
    records: dict[str, QARecord]  # those that can be joined, by id
    share: float  # of an epoch's documents
    max_length: int  # tokens


def joining_of(tokenizer, records: Iterable[QARecord], share: float, max_length: int) -> Joining:
    """The Joining of a training split; UserError where it has no two records that can be joined."""
    usable = {record.id: record for record in records if can_be_joined(record)}
    if len(usable) < 2:
        raise UserError(
            f"join_questions {share:g} joins questions of two records without a passage, and the training data has "
            f"{len(usable)} such: set join_questions to 0."
        )
    return Joining(tokenizer, usable, share, max_length)


class JoinedDataset(PackedDataset):
    """PackedDataset of `singles` of which a share is joined two by two, as drawn with the seed for the epoch.

    `set_epoch` draws, the same in every process. `pairs` are those of the epoch: the single documents, then the joined
    ones, whose record id is both ids with a + between them.
    """

    def __init__(
        self, singles: TokenizedPairs, pack_length: int, loss_on: str, seed: int, multiple_of: int, joining: Joining
    ):
        super().__init__(singles, pack_length, loss_on, seed, multiple_of)
        self.singles, self.single_packs, self.items = singles, self.packs, super().__len__()
        self.seed, self.joining = seed, joining
        self.capacity = pack_length or joining.max_length
        self.set_epoch(0)

    def __len__(self) -> int:
        return self.items

    @property
    def max_label_tokens(self) -> int:
        """The most tokens of one pack that may have a label in any epoch."""
        return self.capacity

    @property
    def joined_share(self) -> float:
        """Share of this epoch's documents that ask two questions."""
        return (len(self.pairs) - len(self.singles)) / len(self.packs.documents)

    def set_epoch(self, epoch: int) -> None:
        """Draw the joined documents of an epoch, 0 for the first, and lay all documents into packs."""
        rng = np.random.default_rng([self.seed, epoch])
        partners, documents = self._draw(rng)
        while True:
            pairs = joined_pairs(self.singles, partners, documents)
            left = np.setdiff1d(np.arange(len(self.singles)), np.array(partners, np.int64).ravel())
            present = np.concatenate([left, np.arange(len(self.singles), len(pairs))])
            packs = pack_documents(pairs.lengths[present], self.pack_length, self.seed)
            if len(packs) <= len(self.single_packs):
                break
            partners, documents = partners[: len(partners) // 2], documents[: len(documents) // 2]
        self.pairs, self.packs = pairs, Packs(present[packs.documents].astype(np.int32), packs.starts)

    def _draw(self, rng: np.random.Generator) -> tuple[list[tuple[int, int]], list[Document]]:
        """Pairs of single documents to join, and what they give; a pair that would be too long stays as it is."""
        records, share = self.joining.records, self.joining.share
        usable = rng.permutation([i for i, name in enumerate(self.singles.record_ids) if str(name) in records])
        # Of N documents j pairs are joined, so that j are a share of the N - j documents that are left.
        wanted = min(round(share * len(self.singles) / (1 + share)), len(usable) // 2)
        partners, texts = [], []
        for one, other in usable[: 2 * wanted].reshape(-1, 2).tolist():
            first, second = (records[str(self.singles.record_ids[i])] for i in (one, other))
            chosen = rng.integers(1 << 30, size=5).tolist()
            if not share_a_text(first, second):
                partners.append((one, other))
                texts.append(_join(first, second, chosen))
        documents = encode_documents(self.joining.tokenizer, texts)
        fits = [len(document.input_ids) <= self.joining.max_length for document in documents]
        return (
            [pair for pair, fit in zip(partners, fits, strict=True) if fit],
            [document for document, fit in zip(documents, fits, strict=True) if fit],
        )


def _join(first: QARecord, second: QARecord, chosen: Sequence[int]) -> tuple[str, str, str]:
    """(question, answer, no context) of any question and answer of each record, by five random numbers."""
    parts = (first.questions, second.questions, first.answers, second.answers, CONNECTIVES)
    one, other, answer, another, connective = (
        texts[number % len(texts)] for texts, number in zip(parts, chosen, strict=True)
    )
    return join_questions(one, other, connective), join_answers(answer, another), ""


def joined_pairs(
    singles: TokenizedPairs, partners: Sequence[tuple[int, int]], documents: Sequence[Document]
) -> TokenizedPairs:
    """The single documents and after them the joined ones; `partners` are the documents that each was made of."""
    if not documents:
        return singles
    names = [f"{singles.record_ids[one]}+{singles.record_ids[other]}" for one, other in partners]
    lengths = np.array([len(document.input_ids) for document in documents], np.int64)
    return TokenizedPairs(
        np.concatenate([singles.tokens, *(np.array(document.input_ids, np.int32) for document in documents)]),
        np.concatenate([singles.starts, singles.starts[-1] + np.cumsum(lengths)]),
        np.concatenate([singles.prompt_lengths, np.array([d.prompt_length for d in documents], np.int32)]),
        np.concatenate(
            [np.array(singles.record_ids, np.dtypes.StringDType()), np.array(names, np.dtypes.StringDType())]
        ),
    )
