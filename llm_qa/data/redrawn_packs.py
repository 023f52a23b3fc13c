"""Packs of which an epoch replaces a share of the documents, as drawn with the seed for that epoch.

An epoch has as many packs as the first one had, hence the same updates: where fewer would do some are cut in two, and
where more were needed fewer documents are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_qa.data.packing import PackedDataset, Packs, TokenizedPairs, pack_documents
from llm_qa.data.prompts import Document


@dataclass(frozen=True)
class Replacement:
    """A document of one epoch, with the indices of the documents in whose place it stands."""

    document: Document
    replaces: tuple[int, ...]


class RedrawnDataset(PackedDataset):
    """PackedDataset of `singles`, of which `set_epoch` replaces some as `draw` says, the same in every process.

    `pairs` are those of the epoch: all of `singles`, then the drawn documents, whose record id is those that they
    replace with a + between them; `packs` hold what the epoch trains on.
    """

    def __init__(self, singles: TokenizedPairs, pack_length: int, loss_on: str, seed: int, multiple_of: int):
        super().__init__(singles, pack_length, loss_on, seed, multiple_of)
        self.singles, self.seed = singles, seed
        self.num_drawn, self.num_joined = 0, 0  # of this epoch's documents: all that were drawn, those of two records

    @property
    def max_label_tokens(self) -> int:
        """The most tokens of one pack that may have a label in any epoch."""
        return self.capacity

    @property
    def joined_share(self) -> float:
        """Share of this epoch's documents that ask two questions."""
        return self.num_joined / len(self.packs.documents)

    def draw(self, epoch: int) -> list[Replacement]:
        """The documents of an epoch, 0 for the first, that stand in the place of single ones."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Draw the documents of an epoch, 0 for the first, and lay all of them into as many packs as ever."""
        drawn, wanted = self.draw(epoch), len(self.packs)
        while True:
            pairs, packs = self.lay(drawn)
            if len(packs) <= wanted <= len(packs.documents):
                break
            drawn = drawn[: len(drawn) // 4 * 2]  # an even number, as rows of one document have joined ones in twos
        self.pairs, self.packs = pairs, split_packs(packs, wanted)
        self.num_drawn, self.num_joined = len(drawn), sum(len(one.replaces) > 1 for one in drawn)

    def lay(self, drawn: Sequence[Replacement]) -> tuple[TokenizedPairs, Packs]:
        """(all documents, the packs of an epoch) with the drawn ones in their places."""
        pairs = with_replacements(self.singles, drawn)
        replaced = np.array([i for one in drawn for i in one.replaces], np.int64)
        left = np.setdiff1d(np.arange(len(self.singles)), replaced)
        present = np.concatenate([left, np.arange(len(self.singles), len(pairs))])
        packs = pack_documents(pairs.lengths[present], self.pack_length, self.seed)
        return pairs, Packs(present[packs.documents].astype(np.int32), packs.starts)


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


def with_replacements(singles: TokenizedPairs, drawn: Sequence[Replacement]) -> TokenizedPairs:
    """The single documents and after them the drawn ones."""
    if not drawn:
        return singles
    ids, documents = singles.record_ids, [one.document for one in drawn]
    names = ["+".join(str(ids[i]) for i in one.replaces) for one in drawn]
    lengths = np.array([len(document.input_ids) for document in documents], np.int64)
    text = np.dtypes.StringDType()
    return TokenizedPairs(
        np.concatenate([singles.tokens, *(np.array(document.input_ids, np.int32) for document in documents)]),
        np.concatenate([singles.starts, singles.starts[-1] + np.cumsum(lengths)]),
        np.concatenate([singles.prompt_lengths, np.array([d.prompt_length for d in documents], np.int32)]),
        np.concatenate([np.array(ids, text), np.array(names, text)]),
    )
