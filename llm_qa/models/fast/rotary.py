"""Queries, keys and values taken out of GPT-NeoX's packed product and turned by their positions, and the way back.

Rotary embedding: Su et al. 2021, arXiv:2104.09864; GPT-NeoX turns the first `cos.shape[1]` places of each head. A turn is
linear, so its backward pass turns the other way and nothing is kept for it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb


@torch.library.custom_op("llm_qa::split_and_rotate", mutates_args=())
def split_and_rotate(packed: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, heads * 3 * width) -> query, key, value (1, heads, tokens, width). cos and sin are (tokens, rotated)."""
    if packed.is_cuda:
        from llm_qa.models.fast import kernels

        return kernels.split_and_rotate(packed, cos, sin, heads)
    query, key, value = packed.view(1, len(packed), heads, -1).transpose(1, 2).chunk(3, dim=-1)
    query, key = apply_rotary_pos_emb(query, key, cos[None], sin[None])
    return query.contiguous(), key.contiguous(), value.contiguous()


@split_and_rotate.register_fake
def _(packed, cos, sin, heads):
    shape = (1, heads, packed.shape[0], packed.shape[1] // (3 * heads))
    return packed.new_empty(shape), packed.new_empty(shape), packed.new_empty(shape)


@torch.library.custom_op("llm_qa::join_and_rotate_back", mutates_args=())
def join_and_rotate_back(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of split_and_rotate's input from those of its three outputs."""
    if dq.is_cuda:
        from llm_qa.models.fast import kernels

        return kernels.join_and_rotate_back(dq, dk, dv, cos, sin)
    dq, dk = apply_rotary_pos_emb(dq, dk, cos[None], -sin[None])
    return torch.cat([dq, dk, dv], dim=-1).transpose(1, 2).reshape(dq.shape[2], -1)


@join_and_rotate_back.register_fake
def _(dq, dk, dv, cos, sin):
    return dq.new_empty((dq.shape[2], 3 * dq.shape[1] * dq.shape[3]))


def _keep_for_backward(ctx, inputs, output):
    _, cos, sin, _ = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, dq, dk, dv):
    return join_and_rotate_back(dq, dk, dv, *ctx.saved_tensors), None, None, None


split_and_rotate.register_autograd(_backward, setup_context=_keep_for_backward)
