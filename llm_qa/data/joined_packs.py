"""Packs in which a share of the documents asks two questions at once, drawn anew for every epoch.

Where two documents are joined, both leave the epoch as single ones, so that an epoch has about the same tokens, and
each document is in it once (twice, where every row is one document). It has as many packs as the single documents have,
hence the same updates: where fewer would do some are cut in two, and where more were needed fewer documents are joined.
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


@dataclass(frozen=True)
class JoinedDocument:
    """A document that asks two questions, and the two single documents whose place it takes."""

    document: Document
    first: int
    second: int

    @property
    def made_of(self) -> tuple[int, int]:
        """Indices of the two single documents."""
        return self.first, self.second


class JoinedDataset(PackedDataset):
    """PackedDataset of `singles` of which a share is joined two by two, as drawn with the seed for the epoch.

    `set_epoch` draws, the same in every process. `pairs` are those of the epoch: the single documents, then the joined
    ones, whose record id is both ids with a + between them.
    """

    def __init__(
        self, singles: TokenizedPairs, pack_length: int, loss_on: str, seed: int, multiple_of: int, joining: Joining
    ):
        super().__init__(singles, pack_length, loss_on, seed, multiple_of)
        self.singles, self.seed, self.joining = singles, seed, joining
        self.capacity = pack_length or joining.max_length
        self.set_epoch(0)

    @property
    def max_label_tokens(self) -> int:
        """The most tokens of one pack that may have a label in any epoch."""
        return self.capacity

    @property
    def num_joined(self) -> int:
        """How many of this epoch's documents ask two questions."""
        return len(self.pairs) - len(self.singles)

    @property
    def joined_share(self) -> float:
        """Share of this epoch's documents that ask two questions."""
        return self.num_joined / len(self.packs.documents)

    def set_epoch(self, epoch: int) -> None:
        """Draw the joined documents of an epoch, 0 for the first, and lay all documents into as many packs as ever."""
        joined = self._draw(np.random.default_rng([self.seed, epoch]))
        singles, wanted = np.arange(len(self.singles)), len(self.packs)
        while True:
            pairs = joined_pairs(self.singles, joined)
            left = np.setdiff1d(singles, np.array([document.made_of for document in joined], np.int64).ravel())
            present = np.concatenate([left, np.arange(len(singles), len(pairs))])
            packs = pack_documents(pairs.lengths[present], self.pack_length, self.seed)
            if len(packs) <= wanted <= len(present):
                break
            joined = joined[: len(joined) // 4 * 2]  # an even number, as rows of one document have them in twos
        self.pairs = pairs
        self.packs = split_packs(Packs(present[packs.documents].astype(np.int32), packs.starts), wanted)

    def _draw(self, rng: np.random.Generator) -> list[JoinedDocument]:
        """The joined documents of an epoch; two documents that would be too long together stay as they are.

        Packs get one document for two. Rows of one document each get both orders of the two, so that the rows remain
        as many as they were.
        """
        records, ids = self.joining.records, list(map(str, self.singles.record_ids))
        usable = rng.permutation([i for i, name in enumerate(ids) if name in records])
        share, orders = self.joining.share, 1 if self.pack_length else 2
        # Of N documents j pairs are joined: to j among N - j documents, or to 2j among N.
        pairs = len(ids) * (share / (1 + share) if self.pack_length else share / 2)
        made_of, texts = [], []
        for two in usable[: 2 * min(round(pairs), len(usable) // 2)].reshape(-1, 2).tolist():
            first, second = (records[ids[i]] for i in two)
            chosen = rng.integers(1 << 30, size=(orders, 5)).tolist()
            if not share_a_text(first, second):
                made_of += [two, two[::-1]][:orders]
                texts += [
                    _join(*pair, how) for pair, how in zip([(first, second), (second, first)], chosen, strict=False)
                ]
        documents = encode_documents(self.joining.tokenizer, texts)
        joined = [JoinedDocument(document, *two) for document, two in zip(documents, made_of, strict=True)]
        units = [joined[i : i + orders] for i in range(0, len(joined), orders)]
        most = self.joining.max_length
        fitting = [unit for unit in units if all(len(one.document.input_ids) <= most for one in unit)]
        return [document for unit in fitting for document in unit]


def split_packs(packs: Packs, wanted: int) -> Packs:
    """The same documents in `wanted` packs: the packs with the most documents are cut in two, so none is empty."""
    starts = packs.starts
    while (missing := wanted - len(starts) + 1) > 0:
        sizes = np.diff(starts)
        largest = np.argsort(-sizes, kind="stable")[:missing]
        largest = largest[sizes[largest] > 1]
        assert len(largest), "as many documents as packs"
        starts = np.sort(np.concatenate([starts, starts[largest] + sizes[largest] // 2]))
    return Packs(packs.documents, starts)


def _join(first: QARecord, second: QARecord, chosen: Sequence[int]) -> tuple[str, str, str]:
    """(question, answer, no context) of any question and answer of each record, by five random numbers."""
    parts = (first.questions, second.questions, first.answers, second.answers, CONNECTIVES)
    one, other, answer, another, connective = (
        texts[number % len(texts)] for texts, number in zip(parts, chosen, strict=True)
    )
    return join_questions(one, other, connective), join_answers(answer, another), ""


def joined_pairs(singles: TokenizedPairs, joined: Sequence[JoinedDocument]) -> TokenizedPairs:
    """The single documents and after them the joined ones."""
    if not joined:
        return singles
    ids, documents = singles.record_ids, [one.document for one in joined]
    names = [f"{ids[one.first]}+{ids[one.second]}" for one in joined]
    lengths = np.array([len(document.input_ids) for document in documents], np.int64)
    text = np.dtypes.StringDType()
    return TokenizedPairs(
        np.concatenate([singles.tokens, *(np.array(document.input_ids, np.int32) for document in documents)]),
        np.concatenate([singles.starts, singles.starts[-1] + np.cumsum(lengths)]),
        np.concatenate([singles.prompt_lengths, np.array([d.prompt_length for d in documents], np.int32)]),
        np.concatenate([np.array(ids, text), np.array(names, text)]),
    )
