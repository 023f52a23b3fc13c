"""The four linear layers of a GPT-NeoX decoder layer with LoRA, as custom operations that are opaque to torch.compile.

y = x @ W^T + bias + scale * dropout(x) @ A^T @ B^T. The frozen product and its LoRA update are separate: the update is
added by the operation that reads the product next (rotary embedding, GELU, residual sum), which reads that memory
anyway. Opaque, because a compiler that sees a dequantised weight or a dropout mask saves it for the backward pass.
Tensors are of one compute dtype; a is (rank, k), b (n, rank), fp32 or 16 bits; d = dropout(x) @ A^T, (tokens, rank).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from llm_qa.models.fast.ops import frozen_linear, lora
from llm_qa.models.fast.ops.attention import attend, attend_backward

_recomputing = False


@contextmanager
def recomputing() -> Iterator[None]:
    """Inside, a forward pass leaves out products that the backward pass does not need; their values are undefined."""
    global _recomputing
    before, _recomputing = _recomputing, True
    try:
        yield
    finally:
        _recomputing = before


def is_recomputing() -> bool:
    """True inside `recomputing`."""
    return _recomputing


def _product(x: Tensor, weight: Sequence[Tensor], outputs: int, last: bool) -> Tensor:
    return (
        x.new_empty((x.shape[0], outputs)) if last and _recomputing else frozen_linear.forward(x, list(weight), outputs)
    )


# --- a frozen product, and the first half of its LoRA update ----------------------------------------------------------


@torch.library.custom_op("llm_qa::lora_product", mutates_args=())
def lora_product(
    x: Tensor, weight: Sequence[Tensor], a: Tensor, seed: Tensor, outputs: int, threshold: int, last: bool
) -> tuple[Tensor, Tensor]:
    """x @ W^T (tokens, outputs) without bias and update, and d. `last`: the product is only added to the residual."""
    d = lora.shrink(x, a, seed, threshold, lora.keep_scale(threshold))
    return _product(x, weight, outputs, last), d


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
    return _input_gradient(dy, dd, x, weight, a, seed, threshold, wanted), da


def _input_gradient(dy, dd, x, weight, a, seed, threshold, wanted) -> Tensor:
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


# --- attention: bias and update of queries, keys and values, rotary embedding, attention output -----------------------


def apply_rotary(packed: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotary embedding of queries and keys (Su et al. 2021, arXiv:2104.09864); values are unchanged.

    packed is (tokens, heads * 3 * width), cos and sin are (tokens, rotated).
    """
    query, key, value = packed.view(1, len(packed), heads, -1).chunk(3, dim=-1)
    query, key = apply_rotary_pos_emb(query, key, cos[None], sin[None], unsqueeze_dim=2)
    return torch.cat([query, key, value], dim=-1).view(packed.shape)


def apply_rotary_backward(grad: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """The gradient of packed, from the gradient of apply_rotary(packed); `grad` may be overwritten."""
    if grad.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.apply_rotary_backward(grad, cos, sin, heads)
    return apply_rotary(grad, cos, -sin, heads)


def rotate(
    packed: Tensor, d: Tensor, b: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, heads: int, scale: float
) -> Tensor:
    """apply_rotary(packed + bias + scale * d @ b^T), (tokens, heads * 3 * width)."""
    if packed.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.rotate(packed, d, b, bias, cos, sin, heads, scale)
    return apply_rotary(packed + bias.to(packed.dtype) + scale * (d @ b.to(d.dtype).T), cos, sin, heads)


@torch.library.custom_op("llm_qa::attention", mutates_args=())
def attention(
    packed: Tensor, d: Tensor, b: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, ends: Tensor,
    heads: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """attend(rotate(packed, ...), starts, ends); for the backward pass also the output of rotate and log-sum-exp."""
    rotated = rotate(packed, d, b, bias, cos, sin, heads, scale)
    attended, sums = attend(rotated, starts, ends, heads)
    return attended, rotated, sums


@attention.register_fake
def _(packed, d, b, bias, cos, sin, starts, ends, heads, scale):
    tokens = packed.shape[0]
    attended = packed.new_empty((tokens, packed.shape[1] // 3))
    return attended, torch.empty_like(packed), packed.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op("llm_qa::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, attended: Tensor, rotated: Tensor, sums: Tensor, d: Tensor, b: Tensor, cos: Tensor, sin: Tensor,
    starts: Tensor, ends: Tensor, heads: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of packed, d and b. Rotation is linear: its backward is the inverse rotation, without saved input."""
    packed = apply_rotary_backward(attend_backward(grad, rotated, attended, sums, starts, ends, heads), cos, sin, heads)
    return packed, *_update_gradients(packed, d, b, scale)


@attention_backward.register_fake
def _(grad, attended, rotated, sums, d, b, cos, sin, starts, ends, heads, scale):
    return torch.empty_like(rotated), torch.empty_like(d), torch.empty_like(b)


def _update_gradients(dy: Tensor, d: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of d and b, where dy is the gradient of a sum that scale * d @ b^T was added to."""
    dd = lora.shrink(dy, b.T, d, 0, scale)  # no dropout (threshold 0): d stands in for the seed, which is not read
    return dd, lora.weight_grad(d, dy, d, 0, scale, b.T).T


def _keep_attention(ctx, inputs, output):
    _, d, b, _, cos, sin, starts, ends, ctx.heads, ctx.scale = inputs
    ctx.set_materialize_grads(False)  # only the attention output has a gradient
    ctx.save_for_backward(*output, d, b, cos, sin, starts, ends)


def _attention_backward(ctx, grad, of_rotated, of_sums):
    assert of_rotated is None
    assert of_sums is None
    gradients = attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.heads, ctx.scale)
    return *gradients, *[None] * 7


attention.register_autograd(_attention_backward, setup_context=_keep_attention)


# --- MLP: dense_h_to_4h (up), GELU, and the frozen product of dense_4h_to_h (down) ------------------------------------


def gelu(h: Tensor, d: Tensor, b: Tensor, bias: Tensor, scale: float) -> Tensor:
    """GELU (exact, Hendrycks and Gimpel 2016, arXiv:1606.08415) of h + bias + scale * d @ b^T, (tokens, width)."""
    if h.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.gelu(h, d, b, bias, scale)
    return F.gelu(h + bias.to(h.dtype) + scale * (d @ b.to(d.dtype).T))


def gelu_backward(
    du: Tensor, dd: Tensor, a: Tensor, h: Tensor, d: Tensor, b: Tensor, bias: Tensor, seed: Tensor, threshold: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of h, a and b from du, that of u = gelu(h, ...), and dd, that of dropout(u) @ a^T.

    du does not yet contain dd's part. u is recomputed and used for LoRA's gradients. `du` may be overwritten.
    """
    keep = lora.keep_scale(threshold)
    if h.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.gelu_backward(du, dd, a, h, d, b, bias, seed, threshold, keep, scale)
    du = lora.expand(dd, a, seed, threshold, keep, du)
    argument = h + bias.to(h.dtype) + scale * (d @ b.to(d.dtype).T)
    normal = 0.5 * (1 + torch.erf(argument * 0.5**0.5))
    density = torch.exp(-0.5 * argument**2) * (2 * torch.pi) ** -0.5
    dh = du * (normal + argument * density)
    da = lora.weight_grad(dd, argument * normal, seed, threshold, keep, a)
    return dh, da, lora.weight_grad(d, dh, d, 0, scale, b.T).T


@torch.library.custom_op("llm_qa::mlp", mutates_args=())
def mlp(
    x: Tensor, up: Sequence[Tensor], up_a: Tensor, up_b: Tensor, up_bias: Tensor, down: Sequence[Tensor],
    down_a: Tensor, seeds: Tensor, threshold: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """gelu(x @ up^T + ...) @ down^T without down's bias and update, down's d, and for the backward pass h and d of up.

    seeds (2, 1) are of the dropout of up and down.
    """
    keep = lora.keep_scale(threshold)
    d_up = lora.shrink(x, up_a, seeds[0], threshold, keep)
    h = frozen_linear.forward(x, list(up), up_b.shape[0])
    u = gelu(h, d_up, up_b, up_bias, scale)
    d_down = lora.shrink(u, down_a, seeds[1], threshold, keep)
    return _product(u, down, x.shape[1], True), d_down, h, d_up


@mlp.register_fake
def _(x, up, up_a, up_b, up_bias, down, down_a, seeds, threshold, scale):
    tokens, rank = x.shape[0], up_a.shape[0]
    small = (tokens, rank)
    return torch.empty_like(x), x.new_empty(small), x.new_empty((tokens, up_b.shape[0])), x.new_empty(small)


@torch.library.custom_op("llm_qa::mlp_backward", mutates_args=())
def mlp_backward(
    dy: Tensor, dd_down: Tensor, x: Tensor, h: Tensor, d_up: Tensor, up: Sequence[Tensor], up_a: Tensor, up_b: Tensor,
    up_bias: Tensor, down: Sequence[Tensor], down_a: Tensor, seeds: Tensor, threshold: int, scale: float, wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x (empty unless `wanted`), up_a, up_b and down_a."""
    keep = lora.keep_scale(threshold)
    du = frozen_linear.backward(dy, list(down), h.shape[1])
    dh, down_da, up_db = gelu_backward(du, dd_down, down_a, h, d_up, up_b, up_bias, seeds[1], threshold, scale)
    dd_up = lora.shrink(dh, up_b.T, d_up, 0, scale)
    up_da = lora.weight_grad(dd_up, x, seeds[0], threshold, keep, up_a)
    return _input_gradient(dh, dd_up, x, up, up_a, seeds[0], threshold, wanted), up_da, up_db, down_da


@mlp_backward.register_fake
def _(dy, dd_down, x, h, d_up, up, up_a, up_b, up_bias, down, down_a, seeds, threshold, scale, wanted):
    dx = torch.empty_like(x) if wanted else x.new_empty(0)
    return dx, torch.empty_like(up_a), torch.empty_like(up_b), torch.empty_like(down_a)


def _keep_mlp(ctx, inputs, output):
    x, up, up_a, up_b, up_bias, down, down_a, seeds, ctx.threshold, ctx.scale = inputs
    _, _, h, d_up = output
    ctx.set_materialize_grads(False)  # h and d are only for the backward pass and have no gradients
    ctx.ups = len(up)
    ctx.save_for_backward(x, h, d_up, up_a, up_b, up_bias, down_a, seeds, *up, *down)


def _mlp_backward(ctx, dy, dd_down, _dh, _dd_up):
    x, h, d_up, up_a, up_b, up_bias, down_a, seeds, *weights = ctx.saved_tensors
    up, down = weights[: ctx.ups], weights[ctx.ups :]
    wanted = ctx.needs_input_grad[0]
    dx, up_da, up_db, down_da = mlp_backward(
        dy.contiguous(), dd_down.contiguous(), x, h, d_up, up, up_a, up_b, up_bias, down, down_a, seeds, ctx.threshold,
        ctx.scale, wanted,
    )  # fmt: skip
    return dx if wanted else None, [None] * len(up), up_da, up_db, None, [None] * len(down), down_da, None, None, None


mlp.register_autograd(_mlp_backward, setup_context=_keep_mlp)


# --- the residual sum -------------------------------------------------------------------------------------------------


@torch.library.custom_op("llm_qa::residual", mutates_args=())
def residual(
    x: Tensor, first: Tensor, d_first: Tensor, b_first: Tensor, second: Tensor, d_second: Tensor, b_second: Tensor,
    bias: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """x + first + second + bias + scale * (d_first @ b_first^T + d_second @ b_second^T), (tokens, width)."""
    if x.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.residual(x, first, d_first, b_first, second, d_second, b_second, bias, scale)
    updates = d_first @ b_first.to(x.dtype).T + d_second @ b_second.to(x.dtype).T
    return x + first + second + bias.to(x.dtype) + scale * updates


@residual.register_fake
def _(x, first, d_first, b_first, second, d_second, b_second, bias, scale):
    return torch.empty_like(x)


@torch.library.custom_op("llm_qa::residual_backward", mutates_args=())
def residual_backward(
    dy: Tensor, d_first: Tensor, b_first: Tensor, d_second: Tensor, b_second: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of d_first, b_first, d_second and b_second; dy is read once for both updates."""
    rank = d_first.shape[1]
    both_d, both_b = torch.cat([d_first, d_second], dim=1), torch.cat([b_first, b_second], dim=1)
    dd, db = _update_gradients(dy, both_d, both_b, scale)
    first = dd[:, :rank].contiguous(), db[:, :rank].contiguous()
    return *first, dd[:, rank:].contiguous(), db[:, rank:].contiguous()


@residual_backward.register_fake
def _(dy, d_first, b_first, d_second, b_second, scale):
    return tuple(torch.empty_like(value) for value in (d_first, b_first, d_second, b_second))


def _keep_residual(ctx, inputs, output):
    _, _, d_first, b_first, _, d_second, b_second, _, ctx.scale = inputs
    ctx.save_for_backward(d_first, b_first, d_second, b_second)


def _residual_backward(ctx, dy):
    dd_first, db_first, dd_second, db_second = residual_backward(dy.contiguous(), *ctx.saved_tensors, ctx.scale)
    return dy, dy, dd_first, db_first, dy, dd_second, db_second, None, None


residual.register_autograd(_residual_backward, setup_context=_keep_residual)
