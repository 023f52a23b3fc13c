"""Linear layers of a GPT-NeoX decoder layer with LoRA, as custom operations that are opaque to torch.compile.

y = x @ W^T + bias + scale * dropout(x) @ A^T @ B^T. The frozen product and its LoRA update are separate: the update is
added by the operation that reads the product next (rotary embedding in `lora_attention`, GELU in `lora_mlp`, the
residual sum here), which reads that memory anyway. Opaque, because a compiler that sees a dequantised weight or a
dropout mask saves it for the backward pass.

Tensors are of one compute dtype; a is (rank, k), b (n, rank), fp32 or 16 bits; d = dropout(x) @ A^T, (tokens, rank).
An update travels as the pair (d, b), what is saved for a backward pass and the factors of the MLP as tuples too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_qa.models.fast.ops import frozen_linear, lora
from llm_qa.models.fast.ops.recomputation import is_recomputing


def product(x: Tensor, weight: Sequence[Tensor], outputs: int, last: bool) -> Tensor:
    """x @ W^T, (tokens, outputs); undefined where it is `last` and recomputed: the backward pass does not need it."""
    if last and is_recomputing():
        return x.new_empty((x.shape[0], outputs))
    return frozen_linear.forward(x, list(weight), outputs)


def added(y: Tensor, update: Sequence[Tensor], bias: Tensor, scale: float) -> Tensor:
    """y + bias + scale * d @ b^T in y's dtype."""
    d, b = update
    return y + bias.to(y.dtype) + scale * (d @ b.to(d.dtype).T)


# --- a frozen product, and the first half of its LoRA update ----------------------------------------------------------


@torch.library.custom_op("llm_qa::lora_product", mutates_args=())
def lora_product(
    x: Tensor, weight: Sequence[Tensor], a: Tensor, seed: Tensor, outputs: int, threshold: int, last: bool
) -> tuple[Tensor, Tensor]:
    """x @ W^T (tokens, outputs) without bias and update, and d. `last`: the product is only added to the residual."""
    d = lora.shrink(x, a, seed, threshold, lora.keep_scale(threshold))
    return product(x, weight, outputs, last), d


@lora_product.register_fake
def _(x, weight, a, seed, outputs, threshold, last):
    return x.new_empty((x.shape[0], outputs)), x.new_empty((x.shape[0], a.shape[0]))


@torch.library.custom_op("llm_qa::lora_product_backward", mutates_args=())
def lora_product_backward(
    dy: Tensor, dd: Tensor, x: Tensor, weight: Sequence[Tensor], a: Tensor, seed: Tensor, threshold: int, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty unless `wanted`) and a from those of the product and of d."""
    keep = lora.keep_scale(threshold)
    da = lora.weight_grad(dd, x, seed, threshold, keep, a)
    return input_gradient(dy, dd, x, weight, a, seed, threshold, wanted), da


def input_gradient(dy, dd, x, weight, a, seed, threshold, wanted) -> Tensor:
    """The gradient of x from those of x @ W^T and of d; empty unless `wanted`."""
    if not wanted:  # the first layer's input comes from a frozen embedding
        return x.new_empty(0)
    dx = frozen_linear.backward(dy, list(weight), x.shape[1])
    return lora.expand(dd, a, seed, threshold, lora.keep_scale(threshold), dx)


@lora_product_backward.register_fake
def _(dy, dd, x, weight, a, seed, threshold, wanted):
    return torch.empty_like(x) if wanted else x.new_empty(0), torch.empty_like(a)


def _keep_product(ctx, inputs, output):
    x, weight, a, seed, _, ctx.threshold, _ = inputs
    ctx.save_for_backward(x, a, seed, *weight)


def _product_backward(ctx, dy, dd):
    x, a, seed, *weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0]
    dx, da = lora_product_backward(dy.contiguous(), dd.contiguous(), x, weight, a, seed, ctx.threshold, wanted)
    return dx if wanted else None, [None] * len(weight), da, None, None, None, None


lora_product.register_autograd(_product_backward, setup_context=_keep_product)


def update_gradients(dy: Tensor, update: Sequence[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of d and b, where dy is the gradient of a sum that scale * d @ b^T was added to."""
    d, b = update
    dd = lora.shrink(dy, b.T, d, 0, scale)  # no dropout (threshold 0): d stands in for the seed, which is not read
    return dd, lora.weight_grad(d, dy, d, 0, scale, b.T).T


# --- the residual sum -------------------------------------------------------------------------------------------------


@torch.library.custom_op("llm_qa::residual", mutates_args=())
def residual(
    x: Tensor,
    first: Tensor,
    first_update: Sequence[Tensor],
    second: Tensor,
    second_update: Sequence[Tensor],
    bias: Tensor,
    scale: float,
) -> Tensor:
    """x + first + second + bias + both updates times scale, (tokens, width)."""
    (d_first, b_first), (d_second, b_second) = first_update, second_update
    if x.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.residual(x, first, d_first, b_first, second, d_second, b_second, bias, scale)
    updates = d_first @ b_first.to(x.dtype).T + d_second @ b_second.to(x.dtype).T
    return x + first + second + bias.to(x.dtype) + scale * updates


@residual.register_fake
def _(x, first, first_update, second, second_update, bias, scale):
    return torch.empty_like(x)


@torch.library.custom_op("llm_qa::residual_backward", mutates_args=())
def residual_backward(
    dy: Tensor, first_update: Sequence[Tensor], second_update: Sequence[Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first update's d and b and of the second's; dy is read once for both."""
    (d_first, b_first), (d_second, b_second) = first_update, second_update
    rank = d_first.shape[1]
    both = torch.cat([d_first, d_second], dim=1), torch.cat([b_first, b_second], dim=1)
    dd, db = update_gradients(dy, both, scale)
    first = dd[:, :rank].contiguous(), db[:, :rank].contiguous()
    return *first, dd[:, rank:].contiguous(), db[:, rank:].contiguous()


@residual_backward.register_fake
def _(dy, first_update, second_update, scale):
    return tuple(torch.empty_like(value) for value in (*first_update, *second_update))


def _keep_residual(ctx, inputs, output):
    _, _, first_update, _, second_update, _, ctx.scale = inputs
    ctx.save_for_backward(*first_update, *second_update)


def _residual_backward(ctx, dy):
    saved = ctx.saved_tensors
    dd_first, db_first, dd_second, db_second = residual_backward(dy.contiguous(), saved[:2], saved[2:], ctx.scale)
    return dy, dy, [dd_first, db_first], dy, [dd_second, db_second], None, None


residual.register_autograd(_residual_backward, setup_context=_keep_residual)
