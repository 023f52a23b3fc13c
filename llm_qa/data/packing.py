"""Packs tokenised question-answer pairs into sequences, and collates them.

Short documents are laid one after another into sequences of `pack_length` tokens, so that the GPU computes on real
tokens instead of padding. Documents are never split and never attend to each other: `position_ids` restart at 0 with
each document, no attention mask is passed and the cache is off, which is what makes transformers build a block-diagonal
mask (with an all-ones mask or a cache, documents would silently attend to each other).
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import numpy as np
import torch

from llm_qa.console import UserError, progress
from llm_qa.data.prompts import Document, encode_documents
from llm_qa.data.records import QARecord
from llm_qa.data.splits import Split

IGNORED = -100  # cross entropy's ignore_index
TOKENIZE_AT_ONCE = 2048  # pairs
# (tokenizer, (record, question, answer) triples, longest document in tokens) -> a document for each
Encode = Callable[[object, Sequence[tuple[QARecord, str, str]], int], list[Document]]
PACK_AT_ONCE = 65536  # pairs


@dataclass(frozen=True)
class TooLong:
    """A pair that does not fit max_length tokens and is set aside."""

    record: str
    question: str
    tokens: int


@dataclass(frozen=True)
class TokenizedPairs:
    """Documents end to end: document i is tokens[starts[i] : starts[i + 1]], its prompt prompt_lengths[i] long."""

    tokens: np.ndarray  # int32, (total tokens,)
    starts: np.ndarray  # int64, (documents + 1,)
    prompt_lengths: np.ndarray  # int32, (documents,)
    record_ids: Sequence[str] | np.ndarray  # of tokenize_records a StringDType array: 16 bytes a document
    numbers: np.ndarray | None = None  # int64, (documents,), of tokenize_records: places among all pairs tried

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self.starts)

    def answer_tokens(self, percentile: float) -> int:
        """The number of tokens, eos counted, that `percentile` percent of the answers do not exceed."""
        return int(np.percentile(self.lengths - self.prompt_lengths, percentile, method="higher"))


def scratch_folder() -> str:
    """The folder of temporary token files: $TMPDIR, else /var/tmp, which is on a disk (/tmp may be in memory)."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())


def encode_as_given(tokenizer, part: Sequence[tuple[QARecord, str, str]], max_length: int) -> list[Document]:
    """The documents of (record, question, answer) triples, each after what its record gives."""
    return encode_documents(tokenizer, [(question, answer, record.given) for record, question, answer in part])


def tokenize_records(
    tokenizer,
    records: Collection[QARecord] | Split,
    max_length: int,
    *,
    encode: Encode = encode_as_given,
    what: str = "tokenising",
) -> tuple[TokenizedPairs, list[TooLong]]:
    """Every question of every record with every answer, tokenised; pairs over `max_length` tokens are set aside.

    Records are read once. Tokens are kept in an unnamed, read-only memory-mapped file in scratch_folder(): the system
    reads what a pack needs, and frees the disk when the process ends in any way. Every process has its own file, so
    none waits for another or reads a half-written one. `encode` makes the documents.

    Raises UserError when no pair is left, or when the file cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=scratch_folder()) as file:
            return _tokenize_into(file, tokenizer, records, max_length, encode, what)
    except OSError as error:
        raise UserError(
            f"The tokens of the data cannot be written to {scratch_folder()} ({error.strerror}): set TMPDIR to a "
            "folder with room for them."
        ) from error


def _tokenize_into(
    file, tokenizer, records, max_length: int, encode: Encode, what: str
) -> tuple[TokenizedPairs, list[TooLong]]:
    lengths, prompt_lengths, record_ids, numbers = [], [], [], []  # one array per TOKENIZE_AT_ONCE
    too_long = []
    triples = (
        (record, question, answer)
        for record in progress(records, total=len(records), what=what, unit="records")
        for question, answer in record.pairs()
    )
    tried = 0
    while part := list(islice(triples, TOKENIZE_AT_ONCE)):
        documents = encode(tokenizer, part, max_length)
        kept = []
        for number, ((record, question, _), document) in enumerate(zip(part, documents, strict=True), tried):
            if len(document.input_ids) > max_length:
                too_long.append(TooLong(record.id, question, len(document.input_ids)))
            else:
                kept.append((record.id, document, number))
        tried += len(part)
        lengths.append(np.array([len(document.input_ids) for _, document, _ in kept], np.int32))
        prompt_lengths.append(np.array([document.prompt_length for _, document, _ in kept], np.int32))
        record_ids.append(np.array([record_id for record_id, _, _ in kept], np.dtypes.StringDType()))
        numbers.append(np.array([number for _, _, number in kept], np.int64))
        tokens = chain.from_iterable(document.input_ids for _, document, _ in kept)
        file.write(np.fromiter(tokens, np.int32, lengths[-1].sum()))
    if tried == len(too_long):
        raise UserError(
            f"None of the {tried} question-answer pairs fits max_length {max_length} tokens: raise --max-length "
            "(and --pack-length with it)."
        )
    file.flush()
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    of_documents = (np.concatenate(arrays) for arrays in (prompt_lengths, record_ids, numbers))
    return TokenizedPairs(np.asarray(np.memmap(file, np.int32, "r")), starts, *of_documents), too_long


@dataclass(frozen=True, eq=False)
class Packs:
    """Packs end to end: packs[i], documents[starts[i] : starts[i + 1]], are the indices of the documents in pack i."""

    documents: np.ndarray  # int32, (documents,)
    starts: np.ndarray  # int64, (packs + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.documents[self.starts[index] : self.starts[index + 1]]


def pack_documents(lengths: np.ndarray, pack_length: int, seed: int) -> Packs:
    """Lay documents into packs of at most `pack_length` tokens: best fit in a seeded random order.

    Linear in the number of documents: open packs are stored by the room left in them. Bit r of one large integer is set
    when a pack with r tokens of room is open, so one operation finds the fullest pack that still fits.
    `lengths` are tokens per document, each at most `pack_length`. With pack_length 0 every document is its own pack.
    Packs and the documents of a pack are in random order.
    """
    order = np.random.default_rng(seed).permutation(len(lengths)).astype(np.int32)
    if pack_length == 0:
        return Packs(order, np.arange(len(order) + 1))
    assert lengths.max(initial=0) <= pack_length, "documents are never split"
    pack_of = np.empty(len(order), np.int32)  # the pack of document order[i]
    packs = 0
    open_by_room = [array("i") for _ in range(pack_length + 1)]
    rooms = 0  # bit r: some open pack has exactly r tokens of room
    with progress(total=len(order), what="packing", unit="pairs") as bar:
        for begin in range(0, len(order), PACK_AT_ONCE):  # converted to Python's integers in chunks
            chosen = []
            for length in lengths[order[begin : begin + PACK_AT_ONCE]].tolist():
                fitting = rooms >> length
                if fitting:
                    room = length + (fitting & -fitting).bit_length() - 1
                    pack = open_by_room[room].pop()
                    if not open_by_room[room]:
                        rooms &= ~(1 << room)
                else:
                    room, pack = pack_length, packs
                    packs += 1
                chosen.append(pack)
                room -= length
                if room:
                    open_by_room[room].append(pack)
                    rooms |= 1 << room
            pack_of[begin : begin + len(chosen)] = chosen
            bar.update(len(chosen))
    starts = np.concatenate([[0], np.cumsum(np.bincount(pack_of, minlength=packs))])
    return Packs(order[np.argsort(pack_of, kind="stable")], starts)


class PackedDataset(torch.utils.data.Dataset):
    """Item i is a pack: input_ids, position_ids and labels, int64 tensors of the pack's real length (no padding).

    The number of items is a multiple of `multiple_of`, the sequences of an update: the last update is filled with empty
    packs of one padding token without a label, so that no document is repeated within an epoch and the updates are the
    same for every number of processes.
    """

    def __init__(self, pairs: TokenizedPairs, pack_length: int, loss_on: str, seed: int, multiple_of: int = 1):
        self.pairs = pairs
        self.loss_on = loss_on
        self.pack_length = pack_length
        self.packs = pack_documents(pairs.lengths, pack_length, seed)
        self.capacity = pack_length or int(pairs.lengths.max())
        self.empty = -len(self.packs) % multiple_of

    def __len__(self) -> int:
        return len(self.packs) + self.empty

    @property
    def efficiency(self) -> float:
        """Share of the packs' capacity that is real tokens."""
        return int(self.pairs.lengths[self.packs.documents].sum()) / (len(self.packs) * self.capacity)

    @property
    def max_label_tokens(self) -> int:
        """The most tokens of one pack that have a label."""
        num_label_tokens = self.pairs.lengths - (1 if self.loss_on == "everything" else self.pairs.prompt_lengths)
        return int(np.add.reduceat(num_label_tokens[self.packs.documents], self.packs.starts[:-1]).max())

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= len(self.packs):
            pad = torch.zeros(1, dtype=torch.int64)
            return {"input_ids": pad, "position_ids": pad, "labels": torch.full_like(pad, IGNORED)}
        documents = self.packs[index]
        begins, lengths = self.pairs.starts[documents], self.pairs.starts[documents + 1] - self.pairs.starts[documents]
        positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = self.pairs.tokens[np.repeat(begins, lengths) + positions].astype(np.int64)
        # The first token of a document has no predecessor in the document, so it has no label.
        given = np.ones_like(lengths) if self.loss_on == "everything" else self.pairs.prompt_lengths[documents]
        labels = np.where(positions < np.repeat(given, lengths), IGNORED, tokens)
        row = {"input_ids": tokens, "position_ids": positions, "labels": labels}
        return {key: torch.from_numpy(value) for key, value in row.items()}


def collate_packs(rows: list[dict[str, torch.Tensor]], pad_token_id: int, length: int = 0) -> dict[str, torch.Tensor]:
    """Batch packs to (rows, longest, or `length` if that is more) int64 tensors, padded on the right.

    Every padding token has position 0, so it is a document of its own that no other attends to; its label is ignored.
    There is no attention mask, see the module's docstring.
    """
    fill = {"input_ids": pad_token_id, "position_ids": 0, "labels": IGNORED}
    missing = max(0, length - max(len(row["labels"]) for row in rows))
    pad = torch.nn.functional.pad
    return {
        key: pad(
            torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=value),
            (0, missing),
            value=value,
        )
        for key, value in fill.items()
    }


def pack_collator(pad_token_id: int, pack_length: int) -> Callable:
    """collate_packs for training. On a GPU all batches have one shape, as each new shape costs seconds of set-up."""
    return partial(collate_packs, pad_token_id=pad_token_id, length=pack_length if torch.cuda.is_available() else 0)


def count_real_tokens(position_ids: torch.Tensor) -> torch.Tensor:
    """Tokens that are not padding, from position_ids of any shape: a scalar int64 tensor, on the same device.

    A real document has two tokens or more, so it has exactly one position 1; positions above 0 are all real. Padding
    has only zeros. Works where pad and eos are the same token.
    """
    return (position_ids > 0).sum() + (position_ids == 1).sum()
