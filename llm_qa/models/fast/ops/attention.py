"""Causal attention inside the documents of a packed sequence, on queries, keys and values in the projection's layout.

Each token is given the start and end of its document in place of a mask, so the cost follows the documents' lengths:
with short documents most blocks of a mask would be empty. A custom operation, opaque to torch.compile. `packed` is
contiguous, (tokens, heads * 3 * width): of each head its query, key and value; starts and ends are int32 (tokens,), of
each token's document: its first token, and one past its last.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_bounds(position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """starts and ends of the documents in a sequence given by its position_ids (tokens,), 0 where one begins."""
    tokens, first = len(position_ids), position_ids == 0
    places = torch.arange(tokens, device=position_ids.device)
    starts = torch.where(first, places, 0).cummax(0).values
    begins = torch.where(first, places, tokens)
    following = torch.cat([begins[1:], begins.new_full((1,), tokens)])
    ends = following.flip(0).cummin(0).values.flip(0)  # the first beginning after each token
    return starts.int(), ends.int()


def document_mask(starts: Tensor) -> Tensor:
    """The attention mask, bool (tokens, tokens): True where a query (row) may attend to a key (column)."""
    places = torch.arange(len(starts), device=starts.device)
    return (places[:, None] >= places) & (places >= starts[:, None])


@torch.library.custom_op("llm_qa::attend", mutates_args=())
def attend(packed: Tensor, starts: Tensor, ends: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """The attention output (tokens, heads * width) and its log-sum-exp for the backward pass, fp32 (heads, tokens)."""
    if packed.is_cuda:
        from llm_qa.models.fast.ops import attention_kernels

        return attention_kernels.attend(packed, starts, heads)
    query, key, value = _parts(packed, heads)
    scores = _scores(query, key, starts)
    sums = scores.logsumexp(-1)
    attended = (scores - sums[..., None]).exp().to(value.dtype) @ value
    return attended.transpose(0, 1).reshape(len(packed), -1), sums


@attend.register_fake
def _(packed, starts, ends, heads):
    tokens = packed.shape[0]
    return packed.new_empty((tokens, packed.shape[1] // 3)), packed.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op("llm_qa::attend_backward", mutates_args=())
def attend_backward(
    grad: Tensor, packed: Tensor, attended: Tensor, sums: Tensor, starts: Tensor, ends: Tensor, heads: int
) -> Tensor:
    """The gradient of packed, from that of the attention output (Dao et al. 2022, arXiv:2205.14135, appendix B)."""
    if packed.is_cuda:
        from llm_qa.models.fast.ops import attention_kernels

        return attention_kernels.attend_backward(grad, packed, attended, sums, starts, ends, heads)
    query, key, value = _parts(packed, heads)
    weights = (_scores(query, key, starts) - sums[..., None]).exp()
    grad, attended = (x.view(len(packed), heads, -1).transpose(0, 1) for x in (grad, attended))
    of_weights = (grad @ value.transpose(1, 2)).float()
    inner = (grad.float() * attended.float()).sum(-1, keepdim=True)
    of_scores = (weights * (of_weights - inner) * query.shape[-1] ** -0.5).to(packed.dtype)
    weights = weights.to(packed.dtype)
    parts = of_scores @ key, of_scores.transpose(1, 2) @ query, weights.transpose(1, 2) @ grad
    return torch.cat(parts, dim=-1).transpose(0, 1).reshape(packed.shape)


@attend_backward.register_fake
def _(grad, packed, attended, sums, starts, ends, heads):
    return torch.empty_like(packed)


def _parts(packed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (heads, tokens, width)."""
    queries, keys, values = packed.view(len(packed), heads, -1).transpose(0, 1).chunk(3, dim=-1)
    return queries, keys, values


def _scores(query: Tensor, key: Tensor, starts: Tensor) -> Tensor:
    scores = (query @ key.transpose(1, 2)).float() * query.shape[-1] ** -0.5
    return scores.masked_fill(~document_mask(starts), -torch.inf)


def _keep(ctx, inputs, output):
    packed, starts, ends, ctx.heads = inputs
    ctx.set_materialize_grads(False)  # the log-sum-exp is only for the backward pass and has no gradient
    ctx.save_for_backward(packed, *output, starts, ends)


def _backward(ctx, grad, of_sums):
    assert of_sums is None
    return attend_backward(grad.contiguous(), *ctx.saved_tensors, ctx.heads), None, None, None


attend.register_autograd(_backward, setup_context=_keep)
