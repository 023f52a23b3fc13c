"""Tokenised pairs -> packs, and the collator.

Short documents are laid one after another into sequences of `pack_length` tokens, so that the GPU computes on real
tokens instead of padding. Documents are never split and never see each other: `position_ids` restart at 0 with each
document, no attention mask is passed and the cache is off, which is what makes transformers build a block-diagonal
mask (an all-ones mask or a live cache would let documents leak into each other in silence).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llm_qa.console import UserError, progress
from llm_qa.data.prompts import encode_documents
from llm_qa.data.records import QARecord

IGNORED = -100  # cross entropy's ignore_index
TOKENIZE_AT_ONCE = 2048  # pairs


@dataclass(frozen=True)
class TooLong:
    """A pair that does not fit max_length tokens and is set aside."""

    record: str
    question: str
    tokens: int


@dataclass(frozen=True)
class TokenizedPairs:
    """Documents end to end: document i is tokens[starts[i] : starts[i + 1]], of which prompt_lengths[i] are given."""

    tokens: np.ndarray  # int32, (total tokens,)
    starts: np.ndarray  # int64, (documents + 1,)
    prompt_lengths: np.ndarray  # int32, (documents,)
    record_ids: list[str]

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self.starts)


def tokenize_records(
    tokenizer, records: list[QARecord], max_length: int, *, what: str = "tokenising"
) -> tuple[TokenizedPairs, list[TooLong]]:
    """Every question of every record with every answer, tokenised; pairs over `max_length` tokens are set aside.

    Raises UserError when no pair is left.
    """
    triples = [
        (record.id, question, answer, record.context) for record in records for question, answer in record.pairs()
    ]
    chunks, lengths, prompt_lengths, record_ids, too_long = [], [], [], [], []
    with progress(total=len(triples), what=what, unit="pairs") as bar:
        for begin in range(0, len(triples), TOKENIZE_AT_ONCE):
            part = triples[begin : begin + TOKENIZE_AT_ONCE]
            documents = encode_documents(
                tokenizer, [(question, answer, context) for _, question, answer, context in part]
            )
            for (record_id, question, _, _), document in zip(part, documents, strict=True):
                if len(document.input_ids) > max_length:
                    too_long.append(TooLong(record_id, question, len(document.input_ids)))
                    continue
                chunks.append(np.asarray(document.input_ids, dtype=np.int32))
                lengths.append(len(document.input_ids))
                prompt_lengths.append(document.prompt_length)
                record_ids.append(record_id)
            bar.update(len(part))
    if not chunks:
        raise UserError(
            f"None of the {len(triples)} question-answer pairs fits max_length {max_length} tokens: raise --max-length "
            "(and --pack-length with it)."
        )
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenizedPairs(np.concatenate(chunks), starts, np.asarray(prompt_lengths, np.int32), record_ids), too_long


def pack_documents(lengths: np.ndarray, pack_length: int, seed: int) -> list[list[int]]:
    """Lay documents into packs of at most `pack_length` tokens: best fit in a seeded random order.

    Linear in the number of documents: open packs are kept by the room left in them, and one big integer, of which bit
    r is set when a pack with r tokens of room is open, finds the fullest pack that still fits in one operation.
    `lengths` are tokens a document, each at most `pack_length`. With pack_length 0 every document is its own pack.
    Returns document indices a pack, in random order.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    if pack_length == 0:
        return [[int(i)] for i in order]
    assert lengths.max(initial=0) <= pack_length, "documents are never split"
    packs: list[list[int]] = []
    open_by_room: list[list[int]] = [[] for _ in range(pack_length + 1)]
    rooms = 0  # bit r: some open pack has exactly r tokens of room
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = open_by_room[room].pop()
            if not open_by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, pack = pack_length, len(packs)
            packs.append([])
        packs[pack].append(index)
        room -= length
        if room:
            open_by_room[room].append(pack)
            rooms |= 1 << room
    return packs


class PackedDataset(torch.utils.data.Dataset):
    """Item i is a pack: input_ids, position_ids and labels, int64 tensors of the pack's real length (no padding).

    The number of items is a multiple of `multiple_of`, the sequences of an update: what is missing is made up of empty
    packs, one padding token that nobody learns, so that no document is seen twice in an epoch to fill the last update
    and every number of processes does the same updates.
    """

    def __init__(self, pairs: TokenizedPairs, pack_length: int, loss_on: str, seed: int, multiple_of: int = 1):
        self.pairs = pairs
        self.loss_on = loss_on
        self.packs = pack_documents(pairs.lengths, pack_length, seed)
        self.capacity = pack_length or int(pairs.lengths.max())
        self.empty = -len(self.packs) % multiple_of

    def __len__(self) -> int:
        return len(self.packs) + self.empty

    @property
    def efficiency(self) -> float:
        """Share of the packs' capacity that is real tokens."""
        return len(self.pairs.tokens) / (len(self.packs) * self.capacity)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= len(self.packs):
            pad = torch.zeros(1, dtype=torch.int64)
            return {"input_ids": pad, "position_ids": pad, "labels": torch.full_like(pad, IGNORED)}
        documents = np.asarray(self.packs[index])
        begins, lengths = self.pairs.starts[documents], self.pairs.starts[documents + 1] - self.pairs.starts[documents]
        positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = self.pairs.tokens[np.repeat(begins, lengths) + positions].astype(np.int64)
        # The first token of a document has no predecessor of its own: it is never a target.
        given = np.ones_like(lengths) if self.loss_on == "everything" else self.pairs.prompt_lengths[documents]
        labels = np.where(positions < np.repeat(given, lengths), IGNORED, tokens)
        row = {"input_ids": tokens, "position_ids": positions, "labels": labels}
        return {key: torch.from_numpy(value) for key, value in row.items()}


def collate_packs(rows: list[dict[str, torch.Tensor]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Batch packs to (rows, longest) int64 tensors, padded on the right.

    Every padding token gets position 0 and so is a document of its own that nobody attends to; its label is ignored.
    No attention mask: see this module's first lines.
    """
    fill = {"input_ids": pad_token_id, "position_ids": 0, "labels": IGNORED}
    return {
        key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=value)
        for key, value in fill.items()
    }


def count_real_tokens(position_ids: torch.Tensor) -> torch.Tensor:
    """Tokens that are not padding, from position_ids of any shape: a scalar int64 tensor, on the same device.

    A real document has two tokens or more, so it has exactly one position 1; positions above 0 are all real. Padding
    has only zeros. Works where pad and eos are the same token.
    """
    return (position_ids > 0).sum() + (position_ids == 1).sum()
