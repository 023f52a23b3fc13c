"""Packs of documents with references, of which a share has others at random, drawn anew for every epoch.

All documents are tokenised once with their nearest references; those that an epoch draws stand in for some of them.
With `join_questions` some of an epoch's documents are joined first (`joined_packs.py`), with references of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llm_qa.data.joined_packs import Joining
from llm_qa.data.packing import TokenizedPairs
from llm_qa.data.records import QARecord
from llm_qa.data.redrawn_packs import RedrawnDataset, Replacement, split_packs
from llm_qa.data.references import References

ROOM = 1.01  # packs for the epochs in which the references at random are longer than in the first


class ReferencesDataset(RedrawnDataset):
    """RedrawnDataset of `singles`, the documents with the nearest references of (record, question, answer) `triples`.

    `singles` may be fewer: its `numbers` are their places in `triples`.
    """

    def __init__(
        self,
        singles: TokenizedPairs,
        pack_length: int,
        loss_on: str,
        seed: int,
        multiple_of: int,
        triples: Sequence[tuple[QARecord, str, str]],
        references: References,
        tokenizer,
        max_length: int,
        joining: Joining | None = None,
    ):
        super().__init__(singles, pack_length, loss_on, seed, multiple_of)
        assert singles.numbers is not None
        self.triples = [triples[number] for number in singles.numbers.tolist()]
        self.references, self.tokenizer, self.max_length, self.joining = references, tokenizer, max_length, joining
        self.capacity = pack_length or max_length
        _, first = self.lay(self.draw(0))
        wanted = min(len(self.singles), math.ceil(ROOM * max(len(self.packs), len(first))))
        self.packs = split_packs(self.packs, wanted)
        self.empty = -wanted % multiple_of
        self.set_epoch(0)

    def draw(self, epoch: int) -> list[Replacement]:
        """Joined documents, then those whose references are drawn at random; a question's answers have the same."""
        packed = bool(self.pack_length)
        joined = self.joining.draw(self.singles, epoch, self.seed, packed=packed) if self.joining else []
        drawn = [self.references.drawn([record], question, epoch) for record, question, _ in self.triples]
        taken = {place for one in joined for place in one.replaces}
        places = [place for place, found in enumerate(drawn) if found is not None and place not in taken]
        # In random order, so that those that an epoch may have no room for are any.
        places = np.random.default_rng([self.seed, epoch]).permutation(np.array(places, np.int64)).tolist()
        part, found = [self.triples[i] for i in places], [drawn[i] or [] for i in places]
        documents = self.references.encode_with(self.tokenizer, part, found, self.max_length)
        return joined + [Replacement(document, (place,)) for document, place in zip(documents, places, strict=True)]
