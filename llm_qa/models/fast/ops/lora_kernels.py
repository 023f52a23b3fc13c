"""Triton kernels: products of a large and a small matrix, 4-bit weights to 16 bits or fp8, rows to fp8.

Imported only where there is a GPU. The plain PyTorch functions of the same names in `lora`, `frozen_linear` and `fp8`
say what each computes; tests compare them. Dropout masks are a hash of (seed, element), so that the backward pass or
recomputation computes the same mask again instead of saving it. Small factors may have any strides and dtype; they are
converted to the large one's dtype inside the kernel, which is faster than a launch of its own. The shapes of tiles
(rows, columns, warps, stages) are those measured fastest on an H200 at polyglot-ko-12.8b's widths.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PROGRAMS = 512  # programs that a large matrix is divided among at least; fewer would not fill the GPU
MORE_PROGRAMS = 2048  # the same where each program has much work besides its sum
MOST_PARTS = 16  # parts that a sum is split into at most for that


@triton.jit
def _hash(index, seed):
    """A 32-bit hash of a 32-bit counter (the constants are Wellons' lowbias32)."""
    h = index.to(tl.uint32) * 2654435769 + seed
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def pair_keep(rows, columns, half, seed, threshold):
    """Which of the elements (row, column) and (row, column + half) are kept: 16 bits of one hash each."""
    h = _hash(rows[:, None] * half + columns[None, :], tl.load(seed).to(tl.uint32))
    return (h & 0xFFFF) >= threshold, (h >> 16) >= threshold


@triton.jit
def tile(matrix, rows, columns, row_stride, column_stride, last_row, last_column):
    """matrix[rows, columns], 0 outside."""
    inside = (rows[:, None] < last_row) & (columns[None, :] < last_column)
    return tl.load(matrix + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0)


@triton.jit
def _down_kernel(
    x, a, out, seed, tokens, width, rank, a_rank, a_column, threshold, scale,
    DROP: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    split, splits = tl.program_id(1), tl.num_programs(1)
    half = width // 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANK)
    start = rows.to(tl.int64)[:, None] * width
    inside = rows[:, None] < tokens
    total = tl.zeros((ROWS, RANK), tl.float32)
    for first in range(split * COLUMNS, half, splits * COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        here = inside & (columns[None, :] < half)
        low = tl.load(x + start + columns[None, :], mask=here, other=0.0)
        high = tl.load(x + start + (columns + half)[None, :], mask=here, other=0.0)
        if DROP:
            keep_low, keep_high = pair_keep(rows, columns, half, seed, threshold)
            low, high = tl.where(keep_low, low, 0.0), tl.where(keep_high, high, 0.0)
        a_low = tile(a, ranks, columns, a_rank, a_column, rank, half).to(low.dtype)
        a_high = tile(a + half * a_column, ranks, columns, a_rank, a_column, rank, half).to(low.dtype)
        total = tl.dot(low, tl.trans(a_low), total, input_precision=PRECISION)
        total = tl.dot(high, tl.trans(a_high), total, input_precision=PRECISION)
    place = out + (split * tokens + rows[:, None]) * rank + ranks[None, :]
    tl.store(place, total * scale, mask=inside & (ranks[None, :] < rank))


def shrink(x, a, seed, threshold: int, scale: float, shape=(32, 64, 2, 4)) -> torch.Tensor:
    """See lora.shrink."""
    (tokens, width), rank = x.shape, a.shape[0]
    rows, columns, warps, stages = shape
    if a.stride(1) != 1 or rank > 32:  # read many times, in wide tiles: a contiguous copy pays
        a = a.to(x.dtype).contiguous()
    blocks = triton.cdiv(tokens, rows)
    parts = torch.empty((parts_for(blocks, width // (4 * columns)), tokens, rank), device=x.device)
    _down_kernel[(blocks, len(parts))](
        x, a, parts, seed, tokens, width, rank, *a.stride(), threshold, scale,
        DROP=threshold > 0, PRECISION=precision(x), RANK=padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return add_parts(parts, x.new_empty((tokens, rank)))


@triton.jit
def _up_kernel(
    base, d, b, seed, tokens, width, rank, b_rank, b_column, threshold, scale,
    PRECISION: tl.constexpr, DROP: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    half = width // 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    mask = (rows[:, None] < tokens) & (columns[None, :] < half)
    left = tile(d, rows, ranks, rank, 1, tokens, rank)
    if DROP:
        keep_low, keep_high = pair_keep(rows, columns, half, seed, threshold)
    for side in tl.static_range(2):
        place = base + rows.to(tl.int64)[:, None] * width + (columns + side * half)[None, :]
        right = tile(b + side * half * b_column, ranks, columns, b_rank, b_column, rank, half).to(left.dtype)
        update = tl.dot(left, right, input_precision=PRECISION) * scale
        if DROP:
            update = tl.where(keep_low if side == 0 else keep_high, update, 0.0)
        tl.store(place, tl.load(place, mask=mask, other=0.0).to(tl.float32) + update, mask=mask)


def expand(d, b, seed, threshold: int, scale: float, base, shape=(32, 128, 4)) -> torch.Tensor:
    """See lora.expand."""
    (tokens, rank), width = d.shape, b.shape[1]
    rows, columns, warps = shape
    _up_kernel[(triton.cdiv(tokens, rows), triton.cdiv(width // 2, columns))](
        base, d, b, seed, tokens, width, rank, *b.stride(), threshold, scale,
        PRECISION=precision(d), DROP=threshold > 0, RANK=padded(rank), ROWS=rows, COLUMNS=columns, num_warps=warps,
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
    for first in range(split * ROWS, tokens, splits * ROWS):
        rows = first + tl.arange(0, ROWS)
        here = (rows[:, None] < tokens) & narrow
        place = y + rows.to(tl.int64)[:, None] * width + columns[None, :]
        low, high = tl.load(place, mask=here, other=0.0), tl.load(place + half, mask=here, other=0.0)
        if DROP:
            keep_low, keep_high = pair_keep(rows, columns, half, seed, threshold)
            low, high = tl.where(keep_low, low, 0.0), tl.where(keep_high, high, 0.0)
        coefficients = tile(d, ranks, rows, 1, rank, rank, tokens)
        low_sum = tl.dot(coefficients, low, low_sum, input_precision=PRECISION)
        high_sum = tl.dot(coefficients, high, high_sum, input_precision=PRECISION)
    place = out + (split * rank + ranks[:, None]) * width + columns[None, :]
    mask = (ranks[:, None] < rank) & narrow
    tl.store(place, low_sum * scale, mask=mask)
    tl.store(place + half, high_sum * scale, mask=mask)


def weight_grad(d, y, seed, threshold: int, scale: float, like, shape=(64, 64, 4, 3)) -> torch.Tensor:
    """See lora.weight_grad."""
    (tokens, width), rank = y.shape, d.shape[1]
    rows, columns, warps, stages = shape
    blocks = triton.cdiv(width // 2, columns)
    parts = torch.empty((parts_for(blocks, tokens // (4 * rows)), rank, width), device=y.device)
    _outer_kernel[(blocks, len(parts))](
        d, y, parts, seed, tokens, width, rank, threshold, scale,
        DROP=threshold > 0, PRECISION=precision(y), RANK=padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return add_parts(parts, torch.empty_like(like))


@triton.jit
def _add_parts_kernel(parts, out, splits, count, columns, row_stride, column_stride, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for split in range(splits):
        total += tl.load(parts + split * count + place, mask=place < count, other=0.0)
    tl.store(out + place // columns * row_stride + place % columns * column_stride, total, mask=place < count)


def add_parts(parts: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Sum (parts, n, m) in fp32 into `out` (n, m), of any strides and dtype. Returns out."""
    count, columns = out.numel(), out.shape[1]
    _add_parts_kernel[(triton.cdiv(count, 1024),)](
        parts, out, len(parts), count, columns, *out.stride(), SIZE=1024, num_warps=4
    )
    return out


def parts_for(blocks: int, most: int, programs: int = PROGRAMS) -> int:
    """The number of parts that each sum is split into: more than 1 where `blocks` programs would not fill the GPU."""
    return max(1, min(MOST_PARTS, most, programs // blocks))


@triton.jit
def _dequantize_kernel(
    packed, absmax, code, absmax2, code2, offset, out, count, NESTED: tl.constexpr, BYTES: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    inside = place < count
    byte = tl.load(packed + place, mask=inside, other=0)
    block = place // 32  # 64 weights, two in a byte
    scale = tl.load(absmax + block, mask=inside, other=0)
    if NESTED:
        scale = tl.load(code2 + scale) * tl.load(absmax2 + block // 256, mask=inside, other=0.0) + tl.load(offset)
    first = tl.load(code + (byte >> 4)) * scale
    second = tl.load(code + (byte & 15)) * scale
    both = tl.program_id(0).to(tl.int64) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    tl.store(out + both, tl.interleave(first, second).to(out.dtype.element_ty), mask=both < 2 * count)


def dequantize_nf4(packed, absmax, code, absmax2, code2, offset, out) -> torch.Tensor:
    """See frozen_linear.dequantize; `out` is filled."""
    count, size = packed.numel(), 1024
    nested = absmax.dtype == torch.uint8
    _dequantize_kernel[(triton.cdiv(count, size),)](
        packed, absmax, code, absmax2, code2, offset, out, count, NESTED=nested, BYTES=size, num_warps=4
    )
    return out


@triton.jit
def _nf4_to_fp8_kernel(
    packed, absmax, code, absmax2, code2, offset, scales, out, rows, blocks,
    NESTED: tl.constexpr, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program converts blocks of 64 weights with one absmax: successive ones, or one column block of ROWS rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = row * blocks + tl.program_id(1) if TRANSPOSED else row
    inside = row < rows
    factor = tl.load(absmax + block, mask=inside, other=0)
    if NESTED:
        second = tl.load(absmax2 + block // 256, mask=inside, other=0.0)
        factor = tl.load(code2 + factor) * second + tl.load(offset)
    if not TRANSPOSED:
        factor = factor / tl.load(scales + row // blocks, mask=inside, other=1.0)
    place = block.to(tl.int64)[:, None]
    both = tl.load(packed + place * 32 + tl.arange(0, 32)[None, :], mask=inside[:, None], other=0)
    value = tl.interleave(tl.load(code + (both >> 4)), tl.load(code + (both & 15))) * factor[:, None]
    if TRANSPOSED:
        column = tl.program_id(1) * 64 + tl.arange(0, 64)
        value = (value * (1.0 / tl.load(scales + column))[None, :]).to(out.dtype.element_ty)
        place = column.to(tl.int64)[:, None] * rows + row[None, :]
        tl.store(out + place, tl.trans(value), mask=inside[None, :])
    else:
        place = place * 64 + tl.arange(0, 64)[None, :]
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside[:, None])


def nf4_to_fp8(packed, absmax, code, absmax2, code2, offset, scales, out, transposed: bool, shape=(64, 2)):
    """See frozen_linear.nf4_to_fp8; `out` is filled directly from 4 bits, without a 16-bit copy."""
    rows, width = out.shape[::-1] if transposed else out.shape
    blocks = width // 64
    rows, across = (rows, blocks) if transposed else (rows * blocks, 1)
    block_rows, warps = shape
    _nf4_to_fp8_kernel[(triton.cdiv(rows, block_rows), across)](
        packed, absmax, code, absmax2, code2, offset, scales, out, rows, blocks,
        NESTED=absmax.dtype == torch.uint8, TRANSPOSED=transposed, ROWS=block_rows, num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _rows_to_fp8_kernel(
    x, out, scales, width, LARGEST: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr
):  # in two parts: a Triton block's length is a power of two, and a row's (5 x 2^n) is not
    row = tl.program_id(0).to(tl.int64) * width
    columns, more = tl.arange(0, FIRST), FIRST + tl.arange(0, REST)
    value = tl.load(x + row + columns, mask=columns < width, other=0.0).to(tl.float32)
    rest = tl.load(x + row + more, mask=more < width, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(value), 0), tl.max(tl.abs(rest), 0))
    scale = tl.maximum(largest, 1e-12) / LARGEST
    tl.store(scales + tl.program_id(0), scale)
    tl.store(out + row + columns, (value / scale).to(out.dtype.element_ty), mask=columns < width)
    tl.store(out + row + more, (rest / scale).to(out.dtype.element_ty), mask=more < width)


def rows_to_fp8(x) -> tuple[torch.Tensor, torch.Tensor]:
    """See fp8.quantize_rows."""
    (rows, width), x = x.shape, x.contiguous()
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    first = triton.next_power_of_2(width // 2 + 1)
    _rows_to_fp8_kernel[(rows,)](
        x, out, scales, width, LARGEST=448.0, FIRST=first, REST=triton.next_power_of_2(max(1, width - first)),
        num_warps=max(1, min(32, first // 512)),
    )  # fmt: skip
    return out, scales


def padded(rank: int) -> int:
    """The rank, but at least tl.dot's smallest side."""
    return max(16, triton.next_power_of_2(rank))


def precision(x: torch.Tensor) -> str:
    """tl.dot's input_precision for x; it has no effect on 16-bit products."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
