"""Attention of a GPT-NeoX decoder layer with LoRA on query_key_value: bias and update, rotary embedding, attention.

One operation, opaque to torch.compile; see `lora_layer` for the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from llm_qa.models.fast.ops.attention import attend, attend_backward
from llm_qa.models.fast.ops.lora_layer import added, update_gradients


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
    packed: Tensor, update: Sequence[Tensor], bias: Tensor, rotary: Sequence[Tensor], heads: int, scale: float
) -> Tensor:
    """apply_rotary(packed + bias + scale * d @ b^T), (tokens, heads * 3 * width); `rotary` is (cos, sin)."""
    (d, b), (cos, sin) = update, rotary
    if packed.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.rotate(packed, d, b, bias, cos, sin, heads, scale)
    return apply_rotary(added(packed, update, bias, scale), cos, sin, heads)


@torch.library.custom_op("llm_qa::attention", mutates_args=())
def attention(
    packed: Tensor,
    update: Sequence[Tensor],
    bias: Tensor,
    rotary: Sequence[Tensor],
    bounds: Sequence[Tensor],
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """attend(rotate(packed, ...), *bounds); for the backward pass also the output of rotate and log-sum-exp."""
    rotated = rotate(packed, update, bias, rotary, heads, scale)
    starts, ends = bounds
    attended, sums = attend(rotated, starts, ends, heads)
    return attended, rotated, sums


@attention.register_fake
def _(packed, update, bias, rotary, bounds, heads, scale):
    tokens = packed.shape[0]
    attended = packed.new_empty((tokens, packed.shape[1] // 3))
    return attended, torch.empty_like(packed), packed.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op("llm_qa::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    outputs: Sequence[Tensor],
    update: Sequence[Tensor],
    rotary: Sequence[Tensor],
    bounds: Sequence[Tensor],
    heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of packed, d and b from that of the first of attention's `outputs`.

    Rotation is linear: its backward is the inverse rotation, without saved input.
    """
    (attended, rotated, sums), (starts, ends), (cos, sin) = outputs, bounds, rotary
    packed = apply_rotary_backward(attend_backward(grad, rotated, attended, sums, starts, ends, heads), cos, sin, heads)
    return packed, *update_gradients(packed, update, scale)


@attention_backward.register_fake
def _(grad, outputs, update, rotary, bounds, heads, scale):
    return torch.empty_like(outputs[1]), *map(torch.empty_like, update)


def _keep_attention(ctx, inputs, output):
    _, update, _, rotary, bounds, ctx.heads, ctx.scale = inputs
    ctx.set_materialize_grads(False)  # only the attention output has a gradient
    ctx.save_for_backward(*output, *update, *rotary, *bounds)


def _attention_backward(ctx, grad, of_rotated, of_sums):
    assert of_rotated is None
    assert of_sums is None
    saved = ctx.saved_tensors
    outputs, update, rotary, bounds = saved[:3], saved[3:5], saved[5:7], saved[7:]
    packed, dd, db = attention_backward(grad.contiguous(), outputs, update, rotary, bounds, ctx.heads, ctx.scale)
    return packed, [dd, db], None, [None, None], [None, None], None, None


attention.register_autograd(_attention_backward, setup_context=_keep_attention)
