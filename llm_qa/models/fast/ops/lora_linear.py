"""One linear layer with LoRA as a custom operation, for decoder layers of any architecture.

y = x @ W^T + bias + scale * dropout(x) @ A^T @ B^T. GPT-NeoX's own layer adds the update of LoRA later, inside
operations that read the product anyway (`lora_layer`); here it is added to the product at once, as nothing is known of
what follows. Opaque to torch.compile for the same reason: a compiler that sees a dequantised weight or a dropout mask
saves it for the backward pass. Saved are x and d = dropout(x) @ A^T alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_qa.models.fast.ops import frozen_linear, lora
from llm_qa.models.fast.ops.lora_layer import input_gradient, update_gradients


@torch.library.custom_op("llm_qa::lora_linear", mutates_args=())
def lora_linear(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    seed: Tensor,
    threshold: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """y (tokens, outputs) and d (tokens, rank) of x (tokens, inputs) in one dtype; `weight` as in frozen_linear."""
    d = lora.shrink(x, a, seed, threshold, lora.keep_scale(threshold))
    y = frozen_linear.forward(x, list(weight), b.shape[0])
    if bias is not None:
        y += bias.to(y.dtype)
    return lora.expand(d, b.T.contiguous(), seed, 0, scale, y), d


@lora_linear.register_fake
def _(x, weight, bias, a, b, seed, threshold, scale):
    return x.new_empty((x.shape[0], b.shape[0])), x.new_empty((x.shape[0], a.shape[0]))


@torch.library.custom_op("llm_qa::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Sequence[Tensor],
    a: Tensor,
    b: Tensor,
    d: Tensor,
    seed: Tensor,
    threshold: int,
    scale: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless `wanted`), a and b from that of y."""
    dd, db = update_gradients(dy, (d, b), scale)
    da = lora.weight_grad(dd, x, seed, threshold, lora.keep_scale(threshold), a)
    return input_gradient(dy, dd, x, weight, a, seed, threshold, wanted), da, db


@lora_linear_backward.register_fake
def _(dy, x, weight, a, b, d, seed, threshold, scale, wanted):
    return torch.empty_like(x) if wanted else x.new_empty(0), torch.empty_like(a), torch.empty_like(b)


def _keep(ctx, inputs, output):
    x, weight, _, a, b, seed, ctx.threshold, ctx.scale = inputs
    ctx.set_materialize_grads(False)  # d is only for the backward pass and has no gradient
    ctx.save_for_backward(x, a, b, output[1], seed, *weight)


def _backward(ctx, dy, of_d):
    assert of_d is None
    x, a, b, d, seed, *weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0]
    dx, da, db = lora_linear_backward(dy.contiguous(), x, weight, a, b, d, seed, ctx.threshold, ctx.scale, wanted)
    return dx if wanted else None, [None] * len(weight), None, da, db, None, None, None


lora_linear.register_autograd(_backward, setup_context=_keep)
