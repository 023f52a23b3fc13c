"""The rows of a pack that the head is computed for: those of tokens with a label."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_qa.data.packing import IGNORED

TILE = 128  # the number of computed rows is rounded up to a multiple of the GPU's matrix tiles
MOST_CHOSEN = 0.8  # with a larger share of label tokens, selecting their rows costs more than it saves


def computed_rows(max_label_tokens: int, tokens: int) -> int:
    """For how many rows the head is computed in passes of `tokens` tokens with so many label tokens at most."""
    rows = -(-max_label_tokens // TILE) * TILE
    return rows if rows <= MOST_CHOSEN * tokens else tokens


def label_rows(targets: Tensor, most: int) -> Tensor:
    """Rows of `targets` (tokens,) with every one that has a label among them, at most `most`: int64 (most,).

    An assertion on the device fails where there are more.
    """
    torch._assert_async((targets != IGNORED).sum() <= most, "a batch has more label tokens than max_label_tokens")
    return torch.argsort((targets == IGNORED).int(), stable=True)[:most]


class _Rows(torch.autograd.Function):
    """x[rows] for distinct rows: the backward pass copies the gradient, where indexing would have to accumulate."""

    @staticmethod
    def forward(ctx, x, rows):
        ctx.save_for_backward(rows)
        ctx.tokens = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad):
        (rows,) = ctx.saved_tensors
        return grad.new_zeros((ctx.tokens, grad.shape[1])).index_copy_(0, rows, grad), None


def take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """The rows (n,), all different, of x (tokens, d): (n, d); x itself where rows is None."""
    return x if rows is None else _Rows.apply(x, rows)
