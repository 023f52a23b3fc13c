"""Triton kernels of a GPT-NeoX layer: the operation after a large product adds the bias and LoRA's update to it.

Imported only where there is a GPU; the plain PyTorch functions of the same names in `lora_layer` say what each
computes, and tests compare them. Sums over a row or column are accumulated in the same kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llm_qa.models.fast.ops.lora_kernels import MORE_PROGRAMS, add_parts, padded, pair_keep, parts_for, precision, tile


@triton.jit
def _normal(value):
    """The normal CDF and density. erf by Abramowitz and Stegun 7.1.26, error at most 1.5e-7."""
    bell = tl.exp(-0.5 * value * value)
    t = tl.rsqrt(1.0 + 0.23164189 * tl.abs(value))  # squared, it is the reciprocal; faster than a division
    t = t * t
    tail = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    tail = 0.5 * bell * t * (0.254829592 + t * (-0.284496736 + tail))
    return tl.where(value < 0, tail, 1.0 - tail), 0.3989422804014327 * bell


@triton.jit
def _bias(bias, columns, last):
    return tl.load(bias + columns, mask=columns < last, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _add_update(
    total, left, b, columns, b_rank, b_column, rank, width, scale, RANK: tl.constexpr, PRECISION: tl.constexpr
):
    """total + scale * left @ b[:, columns], fp32; left is (ROWS, RANK), b (rank, width) in any strides."""
    right = tile(b, tl.arange(0, RANK), columns, b_rank, b_column, rank, width).to(tl.float32) * scale
    return tl.dot(left, right.to(left.dtype), total, input_precision=PRECISION)


@triton.jit
def _gelu_kernel(
    h, d, b, bias, out, tokens, width, rank, b_rank, b_column, scale,
    PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = rows.to(tl.int64)[:, None] * width + columns[None, :]
    mask = (rows[:, None] < tokens) & (columns[None, :] < width)
    value = tl.load(h + place, mask=mask, other=0.0).to(tl.float32) + _bias(bias, columns, width)
    left = tile(d, rows, tl.arange(0, RANK), rank, 1, tokens, rank)
    value = _add_update(value, left, b, columns, b_rank, b_column, rank, width, scale, RANK, PRECISION)
    normal, _ = _normal(value)
    tl.store(out + place, value * normal, mask=mask)


def gelu(h, d, b, bias, scale: float, shape=(64, 128, 8)) -> torch.Tensor:
    """See lora_layer.gelu."""
    (tokens, width), rank, out = h.shape, d.shape[1], torch.empty_like(h)
    rows, columns, warps = shape
    _gelu_kernel[(triton.cdiv(tokens, rows), triton.cdiv(width, columns))](
        h, d, b, bias, out, tokens, width, rank, b.stride(1), b.stride(0), scale,
        PRECISION=precision(h), RANK=padded(rank), ROWS=rows, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _gelu_backward_tile(
    h, du, left_d, left_dd, right_b, right_a, bias, kept, place, mask, keep, scale, PRECISION: tl.constexpr
):
    """GELU's value after dropout, and the gradient of its argument, which is stored over du's tile."""
    grad = tl.where(kept, tl.dot(left_dd, right_a, input_precision=PRECISION) * keep, 0.0)
    grad += tl.load(du + place, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(h + place, mask=mask, other=0.0).to(tl.float32) + bias
    value += tl.dot(left_d, right_b, input_precision=PRECISION) * scale  # faster than inside tl.dot
    normal, density = _normal(value)
    grad = (grad * (normal + value * density)).to(left_d.dtype)
    tl.store(du + place, grad, mask=mask)
    return tl.where(kept & mask, (value * normal).to(left_d.dtype), 0.0), tl.where(mask, grad, 0.0)


@triton.jit
def _gelu_backward_kernel(
    du, dd, a, h, d, b, bias, seed, da, db, tokens, width, rank, a_rank, a_column, b_rank, b_column, threshold, keep,
    scale,
    PRECISION: tl.constexpr, DROP: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    split, splits = tl.program_id(1), tl.num_programs(1)
    half = width // 2
    columns, ranks = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, RANK)
    kind = h.dtype.element_ty
    a_low = tile(a, ranks, columns, a_rank, a_column, rank, half).to(kind)
    a_high = tile(a + half * a_column, ranks, columns, a_rank, a_column, rank, half).to(kind)
    b_low = tile(b, ranks, columns, b_rank, b_column, rank, half).to(kind)
    b_high = tile(b + half * b_column, ranks, columns, b_rank, b_column, rank, half).to(kind)
    bias_low, bias_high = _bias(bias, columns, half), _bias(bias + half, columns, half)
    da_low, da_high = tl.zeros((RANK, COLUMNS), tl.float32), tl.zeros((RANK, COLUMNS), tl.float32)
    db_low, db_high = tl.zeros((RANK, COLUMNS), tl.float32), tl.zeros((RANK, COLUMNS), tl.float32)
    for first in range(split * ROWS, tokens, splits * ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows[:, None] < tokens) & (columns[None, :] < half)
        left_d, left_dd = tile(d, rows, ranks, rank, 1, tokens, rank), tile(dd, rows, ranks, rank, 1, tokens, rank)
        keep_low, keep_high = mask, mask
        if DROP:
            keep_low, keep_high = pair_keep(rows, columns, half, seed, threshold)
        place = rows.to(tl.int64)[:, None] * width + columns[None, :]
        u, dh = _gelu_backward_tile(
            h, du, left_d, left_dd, b_low, a_low, bias_low, keep_low, place, mask, keep, scale, PRECISION
        )
        da_low = tl.dot(tl.trans(left_dd), u, da_low, input_precision=PRECISION)
        db_low = tl.dot(tl.trans(left_d), dh, db_low, input_precision=PRECISION)
        u, dh = _gelu_backward_tile(
            h, du, left_d, left_dd, b_high, a_high, bias_high, keep_high, place + half, mask, keep, scale, PRECISION
        )
        da_high = tl.dot(tl.trans(left_dd), u, da_high, input_precision=PRECISION)
        db_high = tl.dot(tl.trans(left_d), dh, db_high, input_precision=PRECISION)
    place = (split * rank + ranks[:, None]) * width + columns[None, :]
    inside = (ranks[:, None] < rank) & (columns[None, :] < half)
    tl.store(da + place, da_low * keep, mask=inside)
    tl.store(da + place + half, da_high * keep, mask=inside)
    tl.store(db + place, db_low * scale, mask=inside)
    tl.store(db + place + half, db_high * scale, mask=inside)


def gelu_backward(du, dd, a, h, d, b, bias, seed, threshold: int, keep: float, scale: float, shape=(16, 64, 4, 2)):
    """See lora_layer.gelu_backward; `du` is overwritten."""
    (tokens, width), rank = h.shape, d.shape[1]
    rows, columns, warps, stages = shape
    blocks = triton.cdiv(width // 2, columns)
    da = torch.empty((parts_for(blocks, tokens // (4 * rows), MORE_PROGRAMS), rank, width), device=h.device)
    db = torch.empty_like(da)
    _gelu_backward_kernel[(blocks, len(da))](
        du, dd, a, h, d, b, bias, seed, da, db, tokens, width, rank, *a.stride(), b.stride(1), b.stride(0), threshold,
        keep, scale,
        PRECISION=precision(h), DROP=threshold > 0, RANK=padded(rank), ROWS=rows, COLUMNS=columns, num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    return du, add_parts(da, torch.empty_like(a)), add_parts(db, torch.empty_like(b).T).T


@triton.jit
def _residual_kernel(
    x, first, d_first, b_first, second, d_second, b_second, bias, out, tokens, width, rank, b_rank, b_column, scale,
    PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    place = rows.to(tl.int64)[:, None] * width + columns[None, :]
    mask = (rows[:, None] < tokens) & (columns[None, :] < width)
    total = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + _bias(bias, columns, width)
    total += tl.load(first + place, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(second + place, mask=mask, other=0.0).to(tl.float32)
    left = tile(d_first, rows, ranks, rank, 1, tokens, rank)
    total = _add_update(total, left, b_first, columns, b_rank, b_column, rank, width, scale, RANK, PRECISION)
    left = tile(d_second, rows, ranks, rank, 1, tokens, rank)
    total = _add_update(total, left, b_second, columns, b_rank, b_column, rank, width, scale, RANK, PRECISION)
    tl.store(out + place, total, mask=mask)


def residual(x, first, d_first, b_first, second, d_second, b_second, bias, scale: float, shape=(64, 64, 4)):
    """See lora_layer.residual."""
    (tokens, width), rank, out = x.shape, d_first.shape[1], torch.empty_like(x)
    rows, columns, warps = shape
    _residual_kernel[(triton.cdiv(tokens, rows), triton.cdiv(width, columns))](
        x, first, d_first, b_first, second, d_second, b_second, bias, out, tokens, width, rank, b_first.stride(1),
        b_first.stride(0), scale,
        PRECISION=precision(x), RANK=padded(rank), ROWS=rows, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _angles(cos, sin, rows, rotary_columns, half, mask):
    """cos and sin of each row's rotation; 1 and 0 (no rotation) where the mask is False."""
    place = rows[:, None] * (2 * half) + rotary_columns[None, :]
    c = tl.load(cos + place, mask=mask, other=1.0).to(tl.float32)
    return c, tl.load(sin + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _rotate_kernel(
    packed, out, d, b, bias, cos, sin, tokens, width, half, rank, b_rank, b_column, scale,
    PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part, parts = tl.program_id(1), tl.num_programs(1)  # query, key and value of one head, in this order
    rotary_columns, rest = tl.arange(0, HALF), tl.arange(0, REST) + 2 * half
    rotated_mask = (rows[:, None] < tokens) & (rotary_columns[None, :] < half)
    rest_mask = (rows[:, None] < tokens) & (rest[None, :] < width)
    c, s = _angles(cos, sin, rows, rotary_columns, half, rotated_mask & (part % 3 < 2))
    left = tile(d, rows, tl.arange(0, RANK), rank, 1, tokens, rank)
    first = part * width
    place = rows.to(tl.int64)[:, None] * (parts * width) + first
    low = tl.load(packed + place + rotary_columns[None, :], mask=rotated_mask, other=0.0).to(tl.float32)
    high = tl.load(packed + place + half + rotary_columns[None, :], mask=rotated_mask, other=0.0).to(tl.float32)
    other = tl.load(packed + place + rest[None, :], mask=rest_mask, other=0.0).to(tl.float32)
    low += _bias(bias + first, rotary_columns, half)
    high += _bias(bias + first + half, rotary_columns, half)
    other += _bias(bias + first, rest, width)
    b += first * b_column
    low = _add_update(low, left, b, rotary_columns, b_rank, b_column, rank, half, scale, RANK, PRECISION)
    high = _add_update(
        high, left, b + half * b_column, rotary_columns, b_rank, b_column, rank, half, scale, RANK, PRECISION
    )
    other = _add_update(other, left, b, rest, b_rank, b_column, rank, width, scale, RANK, PRECISION)
    tl.store(out + place + rotary_columns[None, :], low * c - high * s, mask=rotated_mask)
    tl.store(out + place + half + rotary_columns[None, :], high * c + low * s, mask=rotated_mask)
    tl.store(out + place + rest[None, :], other, mask=rest_mask)


def rotate(packed, d, b, bias, cos, sin, heads: int, scale: float, shape=(64, 4)) -> torch.Tensor:
    """See lora_layer.rotate."""
    out, tokens, width = torch.empty_like(packed), len(packed), packed.shape[1] // (3 * heads)
    half, rank, (rows, warps) = cos.shape[1] // 2, d.shape[1], shape
    _rotate_kernel[(triton.cdiv(tokens, rows), 3 * heads)](
        packed, out, d, b, bias, cos, sin, tokens, width, half, rank, b.stride(1), b.stride(0), scale,
        PRECISION=precision(packed), RANK=padded(rank), ROWS=rows, HALF=max(16, triton.next_power_of_2(half)),
        REST=max(16, triton.next_power_of_2(width - 2 * half)), num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _apply_rotary_backward_kernel(packed, cos, sin, tokens, width, half, ROWS: tl.constexpr, HALF: tl.constexpr):
    rows, rotary_columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HALF)
    head, heads = tl.program_id(1), tl.num_programs(1)
    mask = (rows[:, None] < tokens) & (rotary_columns[None, :] < half)
    c, s = _angles(cos, sin, rows, rotary_columns, half, mask)
    query = packed + rows.to(tl.int64)[:, None] * (3 * heads * width) + 3 * head * width + rotary_columns[None, :]
    for part in tl.static_range(2):  # the query and the key
        low = tl.load(query + part * width, mask=mask, other=0.0).to(tl.float32)
        high = tl.load(query + part * width + half, mask=mask, other=0.0).to(tl.float32)
        tl.store(query + part * width, low * c + high * s, mask=mask)
        tl.store(query + part * width + half, high * c - low * s, mask=mask)


def apply_rotary_backward(grad, cos, sin, heads: int, shape=(32, 4)) -> torch.Tensor:
    """See lora_layer.apply_rotary_backward; `grad` is overwritten."""
    tokens, half, (rows, warps) = len(grad), cos.shape[1] // 2, shape
    _apply_rotary_backward_kernel[(triton.cdiv(tokens, rows), heads)](
        grad, cos, sin, tokens, grad.shape[1] // (3 * heads), half,
        ROWS=rows, HALF=triton.next_power_of_2(half), num_warps=warps,
    )  # fmt: skip
    return grad
