"""Triton kernels of attention inside packed documents (Dao 2023, arXiv:2307.08691, with bounds in place of a mask).

Imported only where there is a GPU; `attention` says what each computes, and tests compare them. A program loops only
over the tiles between the start and the end of its documents: with documents of 74 tokens that is two or three tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llm_qa.models.fast.ops.lora_kernels import precision

# Rows of a program, rows of each loop step, warps and stages of the three kernels; fastest on an H200, heads of 128.
ATTEND = (64, 32, 4, 3)
QUERY = (64, 16, 4, 3)
KEY = (64, 32, 4, 3)


@triton.jit
def _rows(matrix, rows, tokens, stride, columns, width):
    """matrix[rows, columns], 0 outside; rows are `stride` elements apart."""
    inside = (rows[:, None] < tokens) & (columns[None, :] < width)
    return tl.load(matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(matrix, rows, tokens, stride, columns, width, value):
    inside = (rows[:, None] < tokens) & (columns[None, :] < width)
    tl.store(matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :], value, mask=inside)


@triton.jit
def _attend_kernel(
    packed, attended, sums, starts, tokens, width, scale,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr, WALKED: tl.constexpr,
):  # fmt: skip
    head, heads = tl.program_id(0), tl.num_programs(0)
    own, columns = tl.program_id(1) * OWN + tl.arange(0, OWN), tl.arange(0, WIDTH)
    stride = 3 * heads * width
    packed += 3 * head * width
    start = tl.load(starts + own, mask=own < tokens, other=tokens)
    query = _rows(packed, own, tokens, stride, columns, width)
    most = tl.full((OWN,), -1e30, tl.float32)  # finite, so that sums of masked scores are later scaled by 0
    total, value = tl.zeros((OWN,), tl.float32), tl.zeros((OWN, WIDTH), tl.float32)
    for first in range(tl.min(start), tl.minimum(tokens, (tl.program_id(1) + 1) * OWN), WALKED):
        walked = first + tl.arange(0, WALKED)
        k = _rows(packed + width, walked, tokens, stride, columns, width)
        v = _rows(packed + 2 * width, walked, tokens, stride, columns, width)
        score = tl.dot(query, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
        seen = (walked[None, :] <= own[:, None]) & (walked[None, :] >= start[:, None])
        score = tl.where(seen, score, -1e30)
        higher = tl.maximum(most, tl.max(score, 1))
        weight, fade = tl.exp2(score - higher[:, None]), tl.exp2(most - higher)
        total = total * fade + tl.sum(weight, 1)
        value = tl.dot(weight.to(v.dtype), v, value * fade[:, None], input_precision=PRECISION)
        most = higher
    _store(attended + head * width, own, tokens, heads * width, columns, width, value / total[:, None])
    tl.store(sums + head * tokens + own, (most + tl.log2(total)) * 0.6931471805599453, mask=own < tokens)


def _tiles(width: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, int]:
    """Keyword arguments of a launch; wide heads get half the rows and fp32 fewer stages, to fit into shared memory."""
    own, walked, warps, stages = shape
    stages = 2 if dtype == torch.float32 else stages
    part = 1 if width <= 128 else 2
    tiles = {"WIDTH": max(16, triton.next_power_of_2(width)), "OWN": own // part, "WALKED": max(16, walked // part)}
    return {**tiles, "num_warps": warps, "num_stages": stages}


def attend(packed, starts, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See attention.attend."""
    assert packed.is_contiguous()
    tokens, width = packed.shape[0], packed.shape[1] // (3 * heads)
    attended = packed.new_empty((tokens, heads * width))
    sums = torch.empty((heads, tokens), device=packed.device)
    tiles = _tiles(width, ATTEND, packed.dtype)
    _attend_kernel[(heads, triton.cdiv(tokens, tiles["OWN"]))](
        packed, attended, sums, starts, tokens, width, width**-0.5, PRECISION=precision(packed), **tiles
    )
    return attended, sums


@triton.jit
def _attend_query_kernel(
    grad, packed, attended, sums, inner, out, starts, tokens, width, scale,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr, WALKED: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries; for the other kernel `inner`, for each query the sum of gradient * output."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    own, columns = tl.program_id(1) * OWN + tl.arange(0, OWN), tl.arange(0, WIDTH)
    stride, short = 3 * heads * width, heads * width
    packed += 3 * head * width
    start = tl.load(starts + own, mask=own < tokens, other=tokens)
    query = _rows(packed, own, tokens, stride, columns, width)
    dy = _rows(grad + head * width, own, tokens, short, columns, width)
    y = _rows(attended + head * width, own, tokens, short, columns, width)
    dot = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(inner + head * tokens + own, dot, mask=own < tokens)
    log_sum = tl.load(sums + head * tokens + own, mask=own < tokens, other=0.0) * 1.4426950408889634
    total = tl.zeros((OWN, WIDTH), tl.float32)
    for first in range(tl.min(start), tl.minimum(tokens, (tl.program_id(1) + 1) * OWN), WALKED):
        walked = first + tl.arange(0, WALKED)
        k = _rows(packed + width, walked, tokens, stride, columns, width)
        v = _rows(packed + 2 * width, walked, tokens, stride, columns, width)
        score = tl.dot(query, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
        seen = (walked[None, :] <= own[:, None]) & (walked[None, :] >= start[:, None])
        weight = tl.where(seen, tl.exp2(score - log_sum[:, None]), 0.0)
        score_grad = weight * (tl.dot(dy, tl.trans(v), input_precision=PRECISION) - dot[:, None])
        total = tl.dot(score_grad.to(k.dtype), k, total, input_precision=PRECISION)
    _store(out + 3 * head * width, own, tokens, stride, columns, width, total * scale)


@triton.jit
def _attend_key_kernel(
    grad, packed, sums, inner, out, ends, tokens, width, scale,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr, WALKED: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values: the loop is over the queries that attend to them."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    own, columns = tl.program_id(1) * OWN + tl.arange(0, OWN), tl.arange(0, WIDTH)
    stride, short = 3 * heads * width, heads * width
    packed += 3 * head * width
    end = tl.load(ends + own, mask=own < tokens, other=0)
    k = _rows(packed + width, own, tokens, stride, columns, width)
    v = _rows(packed + 2 * width, own, tokens, stride, columns, width)
    of_key, of_value = tl.zeros((OWN, WIDTH), tl.float32), tl.zeros((OWN, WIDTH), tl.float32)
    for first in range(tl.program_id(1) * OWN, tl.max(end), WALKED):
        walked = first + tl.arange(0, WALKED)
        query = _rows(packed, walked, tokens, stride, columns, width)
        dy = _rows(grad + head * width, walked, tokens, short, columns, width)
        log_sum = tl.load(sums + head * tokens + walked, mask=walked < tokens, other=0.0) * 1.4426950408889634
        dot = tl.load(inner + head * tokens + walked, mask=walked < tokens, other=0.0)
        score = tl.dot(k, tl.trans(query), input_precision=PRECISION) * (scale * 1.4426950408889634)
        seen = (own[:, None] <= walked[None, :]) & (walked[None, :] < end[:, None])
        weight = tl.where(seen, tl.exp2(score - log_sum[None, :]), 0.0)
        of_value = tl.dot(weight.to(dy.dtype), dy, of_value, input_precision=PRECISION)
        score_grad = weight * (tl.dot(v, tl.trans(dy), input_precision=PRECISION) - dot[None, :])
        of_key = tl.dot(score_grad.to(query.dtype), query, of_key, input_precision=PRECISION)
    _store(out + (3 * head + 1) * width, own, tokens, stride, columns, width, of_key * scale)
    _store(out + (3 * head + 2) * width, own, tokens, stride, columns, width, of_value)


def attend_backward(grad, packed, attended, sums, starts, ends, heads: int) -> torch.Tensor:
    """See attention.attend_backward."""
    tokens, width = packed.shape[0], packed.shape[1] // (3 * heads)
    out, inner = torch.empty_like(packed), torch.empty_like(sums)
    tiles = _tiles(width, QUERY, packed.dtype)
    _attend_query_kernel[(heads, triton.cdiv(tokens, tiles["OWN"]))](
        grad,
        packed,
        attended,
        sums,
        inner,
        out,
        starts,
        tokens,
        width,
        width**-0.5,
        PRECISION=precision(packed),
        **tiles,
    )
    tiles = _tiles(width, KEY, packed.dtype)
    _attend_key_kernel[(heads, triton.cdiv(tokens, tiles["OWN"]))](
        grad, packed, sums, inner, out, ends, tokens, width, width**-0.5, PRECISION=precision(packed), **tiles
    )
    return out
