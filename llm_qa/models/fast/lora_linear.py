"""A frozen linear layer with LoRA as one operation that torch.compile does not look into.

out = x @ W^T + scale * dropout(x) @ A^T @ B^T. Opaque, because a compiler that saw the dequantised weight or the
dropout mask would keep them for the backward pass; only x and the (tokens, rank) product are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from llm_qa.models.fast import low_rank, products


@torch.library.custom_op("llm_qa::lora_linear", mutates_args=())
def lora_linear(
    x: Tensor, weight: Sequence[Tensor], a: Tensor, b: Tensor, seed: Tensor, threshold: int, scale: float, wanted: bool
) -> tuple[Tensor, Tensor]:
    """(tokens, k) -> (tokens, n), and dropout(x) @ A^T (tokens, rank) for the backward pass, both of x's dtype.

    a is (rank, k), b (n, rank), fp32 or 16 bits. With `wanted` False the output is not computed and must not be read:
    a recomputation needs what the backward pass keeps, not a product that nobody reads twice.
    """
    d = low_rank.down(x, a, seed, threshold, low_rank.keep_scale(threshold))
    if not wanted:
        return x.new_empty((x.shape[0], b.shape[0])), d
    return products.forward(x, list(weight), b.shape[0], partial(low_rank.up, d, b.T, seed, 0, scale)), d


@lora_linear.register_fake
def _(x, weight, a, b, seed, threshold, scale, wanted):
    return x.new_empty((x.shape[0], b.shape[0])), x.new_empty((x.shape[0], a.shape[0]))


@torch.library.custom_op("llm_qa::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    dy: Tensor, x: Tensor, d: Tensor, weight: Sequence[Tensor], a: Tensor, b: Tensor, seed: Tensor, threshold: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, a and b."""
    dd = low_rank.down(dy, b.T, seed, 0, scale)
    db = low_rank.outer(d, dy, seed, 0, scale).T.contiguous()
    keep = low_rank.keep_scale(threshold)
    da = low_rank.outer(dd, x, seed, threshold, keep)
    dx = products.backward(dy, list(weight), x.shape[1], partial(low_rank.up, dd, a, seed, threshold, keep))
    return dx, da.to(a.dtype), db.to(b.dtype)


@lora_linear_backward.register_fake
def _(dy, x, d, weight, a, b, seed, threshold, scale):
    return torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)


def _keep_for_backward(ctx, inputs, output):
    x, weight, a, b, seed, ctx.threshold, ctx.scale, _ = inputs
    ctx.save_for_backward(x, output[1], a, b, seed, *weight)


def _backward(ctx, dy, _):
    x, d, a, b, seed, *weight = ctx.saved_tensors
    dx, da, db = lora_linear_backward(dy.contiguous(), x, d, weight, a, b, seed, ctx.threshold, ctx.scale)
    return dx, [None] * len(weight), da, db, None, None, None, None


lora_linear.register_autograd(_backward, setup_context=_keep_for_backward)
