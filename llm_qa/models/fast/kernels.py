"""Triton kernels that stream a large matrix past a small one, 4-bit weights back to 16 bits, and rows to fp8.

Imported only where there is a GPU. The plain PyTorch functions of the same names in `low_rank`, `nf4` and `fp8` say what
each computes; tests hold them together. Dropout masks are a hash of (seed, element), so that a backward pass or a
recomputation makes the same mask again instead of keeping it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SPLITS = 4  # programs that share one sum, so that few rows still fill the GPU


@triton.jit
def _hash(index, seed):
    """32 well mixed bits of a 32-bit counter (the constants are Wellons' lowbias32)."""
    h = index.to(tl.uint32) * 2654435769 + seed
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def _pair_keep(rows, columns, half, seed, threshold):
    """Which of the elements (row, column) and (row, column + half) are kept: 16 bits of one hash each."""
    h = _hash(rows[:, None] * half + columns[None, :], seed)
    return (h & 0xFFFF) >= threshold, (h >> 16) >= threshold


@triton.jit
def _down_kernel(
    x, a, out, seed, tokens, width, rank, a_rank, a_width, threshold, scale,
    DROP: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    split, splits = tl.program_id(1), tl.num_programs(1)
    half = width // 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANK)
    start = rows.to(tl.int64)[:, None] * width
    inside = rows[:, None] < tokens
    total = tl.zeros((ROWS, RANK), tl.float32)
    seed_bits = tl.load(seed).to(tl.uint32)
    for first in range(split * COLUMNS, half, splits * COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        here = inside & (columns[None, :] < half)
        small = (columns[:, None] < half) & (ranks[None, :] < rank)
        low = tl.load(x + start + columns[None, :], mask=here, other=0.0)
        high = tl.load(x + start + (columns + half)[None, :], mask=here, other=0.0)
        if DROP:
            keep_low, keep_high = _pair_keep(rows, columns, half, seed_bits, threshold)
            low, high = tl.where(keep_low, low, 0.0), tl.where(keep_high, high, 0.0)
        at = a + ranks[None, :] * a_rank
        a_low = tl.load(at + columns[:, None] * a_width, mask=small, other=0.0).to(low.dtype)
        a_high = tl.load(at + (columns + half)[:, None] * a_width, mask=small, other=0.0).to(low.dtype)
        total = tl.dot(low, a_low, total, input_precision=PRECISION)
        total = tl.dot(high, a_high, total, input_precision=PRECISION)
    place = out + (split * tokens + rows[:, None]) * rank + ranks[None, :]
    tl.store(place, total * scale, mask=inside & (ranks[None, :] < rank))


def down(x, a, seed, threshold: int, scale: float) -> torch.Tensor:
    """See low_rank.down."""
    (tokens, width), rank = x.shape, a.shape[0]
    rows, splits = 64, SPLITS if tokens > 1024 else 4 * SPLITS
    out = torch.empty((splits, tokens, rank), dtype=torch.float32, device=x.device)
    _down_kernel[(triton.cdiv(tokens, rows), splits)](
        x, a, out, seed, tokens, width, rank, a.stride(0), a.stride(1), threshold, scale,
        DROP=threshold > 0, PRECISION=_precision(x), RANK=_padded(rank), ROWS=rows, COLUMNS=64, num_warps=4,
    )  # fmt: skip
    return out.sum(0).to(x.dtype)


@triton.jit
def _up_add_kernel(
    base, d, b, out, seed, tokens, width, rank, b_rank, b_width, threshold, scale,
    DROP: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    half = width // 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    inside, narrow = rows[:, None] < tokens, columns[None, :] < half
    small = d + rows[:, None] * rank + ranks[None, :]
    coefficients = tl.load(small, mask=inside & (ranks[None, :] < rank), other=0.0)
    seed_bits = tl.load(seed).to(tl.uint32)
    at = b + ranks[:, None] * b_rank
    b_mask = (ranks[:, None] < rank) & narrow
    b_low = tl.load(at + columns[None, :] * b_width, mask=b_mask, other=0.0).to(coefficients.dtype)
    b_high = tl.load(at + (columns + half)[None, :] * b_width, mask=b_mask, other=0.0).to(coefficients.dtype)
    low = tl.dot(coefficients, b_low, input_precision=PRECISION) * scale
    high = tl.dot(coefficients, b_high, input_precision=PRECISION) * scale
    if DROP:
        keep_low, keep_high = _pair_keep(rows, columns, half, seed_bits, threshold)
        low, high = tl.where(keep_low, low, 0.0), tl.where(keep_high, high, 0.0)
    place = rows.to(tl.int64)[:, None] * width + columns[None, :]
    mask = inside & narrow
    low += tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
    high += tl.load(base + place + half, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, low, mask=mask)
    tl.store(out + place + half, high, mask=mask)


def up_add_(base, d, b, seed, threshold: int, scale: float) -> torch.Tensor:
    """See low_rank.up_add_."""
    (tokens, width), rank = base.shape, d.shape[1]
    grid = (triton.cdiv(tokens, 32), triton.cdiv(width // 2, 128))
    _up_add_kernel[grid](
        base, d, b, base, seed, tokens, width, rank, b.stride(0), b.stride(1), threshold, scale,
        DROP=threshold > 0, PRECISION=_precision(base), RANK=_padded(rank), ROWS=32, COLUMNS=128, num_warps=4,
    )  # fmt: skip
    return base


@triton.jit
def _outer_kernel(
    d, y, out, seed, tokens, width, rank, threshold, scale,
    DROP: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    split, splits = tl.program_id(1), tl.num_programs(1)
    half = width // 2
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    narrow = columns[None, :] < half
    low_sum = tl.zeros((RANK, COLUMNS), tl.float32)
    high_sum = tl.zeros((RANK, COLUMNS), tl.float32)
    seed_bits = tl.load(seed).to(tl.uint32)
    for first in range(split * ROWS, tokens, splits * ROWS):
        rows = first + tl.arange(0, ROWS)
        here = (rows[:, None] < tokens) & narrow
        place = y + rows.to(tl.int64)[:, None] * width + columns[None, :]
        low, high = tl.load(place, mask=here, other=0.0), tl.load(place + half, mask=here, other=0.0)
        if DROP:
            keep_low, keep_high = _pair_keep(rows, columns, half, seed_bits, threshold)
            low, high = tl.where(keep_low, low, 0.0), tl.where(keep_high, high, 0.0)
        mask = (rows[None, :] < tokens) & (ranks[:, None] < rank)
        coefficients = tl.load(d + rows[None, :] * rank + ranks[:, None], mask=mask, other=0.0)
        low_sum = tl.dot(coefficients, low, low_sum, input_precision=PRECISION)
        high_sum = tl.dot(coefficients, high, high_sum, input_precision=PRECISION)
    place = out + (split * rank + ranks[:, None]) * width + columns[None, :]
    mask = (ranks[:, None] < rank) & narrow
    tl.store(place, low_sum * scale, mask=mask)
    tl.store(place + half, high_sum * scale, mask=mask)


def outer(d, y, seed, threshold: int, scale: float) -> torch.Tensor:
    """See low_rank.outer."""
    (tokens, width), rank = y.shape, d.shape[1]
    splits = max(1, min(16, tokens // 256, 64 * 1024 // width))
    out = torch.empty((splits, rank, width), dtype=torch.float32, device=y.device)
    _outer_kernel[(triton.cdiv(width // 2, 64), splits)](
        d, y, out, seed, tokens, width, rank, threshold, scale,
        DROP=threshold > 0, PRECISION=_precision(y), RANK=_padded(rank), ROWS=64, COLUMNS=64, num_warps=4,
    )  # fmt: skip
    return out.sum(0)


@triton.jit
def _dequantize_kernel(
    packed, absmax, code, absmax2, code2, offset, out, count, NESTED: tl.constexpr, BYTES: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    inside = place < count
    byte = tl.load(packed + place, mask=inside, other=0)
    block = place // 32  # 64 weights, two a byte
    scale = tl.load(absmax + block, mask=inside, other=0)
    if NESTED:
        scale = tl.load(code2 + scale) * tl.load(absmax2 + block // 256, mask=inside, other=0.0) + tl.load(offset)
    first = tl.load(code + (byte >> 4)) * scale
    second = tl.load(code + (byte & 15)) * scale
    both = tl.program_id(0).to(tl.int64) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    tl.store(out + both, tl.interleave(first, second).to(out.dtype.element_ty), mask=both < 2 * count)


def dequantize_nf4(packed, absmax, code, absmax2, code2, offset, out) -> torch.Tensor:
    """See nf4.dequantize; `out` is filled."""
    count, size = packed.numel(), 1024
    nested = absmax.dtype == torch.uint8
    _dequantize_kernel[(triton.cdiv(count, size),)](
        packed, absmax, code, absmax2, code2, offset, out, count, NESTED=nested, BYTES=size, num_warps=4
    )
    return out


@triton.jit
def _rows_to_fp8_kernel(x, out, scales, width, LARGEST: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        value = tl.load(x + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(value))
    scale = tl.maximum(tl.max(most, 0), 1e-12) / LARGEST
    tl.store(scales + row, scale)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        value = tl.load(x + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        tl.store(out + row * width + columns, (value / scale).to(out.dtype.element_ty), mask=columns < width)


def rows_to_fp8(x) -> tuple[torch.Tensor, torch.Tensor]:
    """See fp8.quantize_rows."""
    rows, width = x.shape
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    _rows_to_fp8_kernel[(rows,)](x, out, scales, width, LARGEST=448.0, COLUMNS=2048, num_warps=4)
    return out, scales


def _padded(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))  # tl.dot's smallest side


def _precision(x: torch.Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"  # tf32 says nothing about 16-bit products
