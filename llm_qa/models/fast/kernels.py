"""Triton kernels that stream a large matrix past a small one, 4-bit weights back to 16 bits, and rows to fp8.

Imported only where there is a GPU. The plain PyTorch functions of the same names in `low_rank`, `products`, `fp8` and
`lora_layer` say what each computes; tests hold them together. Dropout masks are a hash of (seed, element), so that a
backward pass or a recomputation makes the same mask again instead of keeping it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SMALL_TOKENS = 8192  # below, more programs share one sum, so that few rows still fill the GPU


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
    x, a, out, seed, tokens, width, rank, threshold, scale,
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
        small = (columns[None, :] < half) & (ranks[:, None] < rank)
        low = tl.load(x + start + columns[None, :], mask=here, other=0.0)
        high = tl.load(x + start + (columns + half)[None, :], mask=here, other=0.0)
        if DROP:
            keep_low, keep_high = _pair_keep(rows, columns, half, seed_bits, threshold)
            low, high = tl.where(keep_low, low, 0.0), tl.where(keep_high, high, 0.0)
        at = a + ranks[:, None] * width + columns[None, :]
        total = tl.dot(low, tl.trans(tl.load(at, mask=small, other=0.0)), total, input_precision=PRECISION)
        total = tl.dot(high, tl.trans(tl.load(at + half, mask=small, other=0.0)), total, input_precision=PRECISION)
    place = out + (split * tokens + rows[:, None]) * rank + ranks[None, :]
    tl.store(place, total * scale, mask=inside & (ranks[None, :] < rank))


def down(x, a, seed, threshold: int, scale: float, tile=(64, 64, 4, 3)) -> torch.Tensor:
    """See low_rank.down."""
    (tokens, width), rank = x.shape, a.shape[0]
    rows, columns, warps, stages = tile
    splits = max(1, min(16, 4 * SMALL_TOKENS // tokens, width // (4 * columns)))
    out = torch.empty((splits, tokens, rank), dtype=torch.float32, device=x.device)
    _down_kernel[(triton.cdiv(tokens, rows), splits)](
        x, a.to(x.dtype).contiguous(), out, seed, tokens, width, rank, threshold, scale,
        DROP=threshold > 0, PRECISION=_precision(x), RANK=_padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out.sum(0).to(x.dtype)


@triton.jit
def _update(d, b, rows, columns, tokens, width, rank, scale, RANK: tl.constexpr, PRECISION: tl.constexpr):
    """scale * d[rows] @ b[:, columns] as a fp32 tile; d is (tokens, rank), b (rank, width), RANK its padded rank."""
    ranks = tl.arange(0, RANK)
    d_mask = (rows[:, None] < tokens) & (ranks[None, :] < rank)
    left = tl.load(d + rows[:, None] * rank + ranks[None, :], mask=d_mask, other=0.0)
    b_mask = (ranks[:, None] < rank) & (columns[None, :] < width)
    right = tl.load(b + ranks[:, None] * width + columns[None, :], mask=b_mask, other=0.0)
    return tl.dot(left, right, input_precision=PRECISION) * scale


@triton.jit
def _up_kernel(
    base, d, b, seed, tokens, width, rank, threshold, scale,
    PRECISION: tl.constexpr, DROP: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    half = width // 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows[:, None] < tokens) & (columns[None, :] < half)
    keep_low, keep_high = _pair_keep(rows, columns, half, tl.load(seed).to(tl.uint32), threshold)
    for side in tl.static_range(2):
        here = columns + side * half
        place = base + rows.to(tl.int64)[:, None] * width + here[None, :]
        update = _update(d, b, rows, here, tokens, width, rank, scale, RANK, PRECISION)
        if DROP:
            update = tl.where(keep_low if side == 0 else keep_high, update, 0.0)
        tl.store(place, tl.load(place, mask=mask, other=0.0).to(tl.float32) + update, mask=mask)


def up(d, b, seed, threshold: int, scale: float, base) -> torch.Tensor:
    """See low_rank.up."""
    (tokens, rank), width = d.shape, b.shape[1]
    _up_kernel[(triton.cdiv(tokens, 32), triton.cdiv(width // 2, 128))](
        base, d, b.to(d.dtype).contiguous(), seed, tokens, width, rank, threshold, scale,
        PRECISION=_precision(d), DROP=threshold > 0, RANK=_padded(rank), ROWS=32, COLUMNS=128, num_warps=4,
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


def outer(d, y, seed, threshold: int, scale: float, tile=(64, 64, 4, 3)) -> torch.Tensor:
    """See low_rank.outer."""
    (tokens, width), rank = y.shape, d.shape[1]
    rows, columns, warps, stages = tile
    splits = max(1, min(16, tokens // 256, 64 * 1024 // width))
    out = torch.empty((splits, rank, width), dtype=torch.float32, device=y.device)
    _outer_kernel[(triton.cdiv(width // 2, columns), splits)](
        d, y, out, seed, tokens, width, rank, threshold, scale,
        DROP=threshold > 0, PRECISION=_precision(y), RANK=_padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
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
    columns = tl.arange(0, COLUMNS)
    inside = columns < width
    value = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-12) / LARGEST
    tl.store(scales + row, scale)
    tl.store(out + row * width + columns, (value / scale).to(out.dtype.element_ty), mask=inside)


def rows_to_fp8(x) -> tuple[torch.Tensor, torch.Tensor]:
    """See fp8.quantize_rows."""
    rows, width = x.shape
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    columns = triton.next_power_of_2(width)
    _rows_to_fp8_kernel[(rows,)](
        x, out, scales, width, LARGEST=448.0, COLUMNS=columns, num_warps=max(1, min(16, columns // 1024))
    )
    return out, scales


@triton.jit
def _normal(value):
    """The normal distribution's function and density. erf by Abramowitz and Stegun 7.1.26: wrong by 1.5e-7 at most."""
    bell = tl.exp(-0.5 * value * value)
    t = 1.0 / (1.0 + 0.23164189 * tl.abs(value))
    tail = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    tail = 0.5 * bell * t * (0.254829592 + t * (-0.284496736 + tail))
    return tl.where(value < 0, tail, 1.0 - tail), 0.3989422804014327 * bell


@triton.jit
def _gelu_kernel(
    h, d, b, bias, out, tokens, width, rank, scale,
    PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = rows.to(tl.int64)[:, None] * width + columns[None, :]
    mask = (rows[:, None] < tokens) & (columns[None, :] < width)
    value = tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    value += _update(d, b, rows, columns, tokens, width, rank, scale, RANK, PRECISION)
    normal, _ = _normal(value)
    tl.store(out + place, value * normal, mask=mask)


def gelu(h, d, b, bias, scale: float) -> torch.Tensor:
    """See lora_layer.gelu."""
    (tokens, width), out = h.shape, torch.empty_like(h)
    _gelu_kernel[(triton.cdiv(tokens, 32), triton.cdiv(width, 128))](
        h, d, _rows(b, h), bias, out, tokens, width, d.shape[1], scale,
        PRECISION=_precision(h), RANK=_padded(d.shape[1]), ROWS=32, COLUMNS=128, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _gelu_backward_kernel(
    du, dd, a, h, d, b, bias, seed, u, tokens, width, rank, threshold, keep, scale,
    PRECISION: tl.constexpr, DROP: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    half = width // 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows[:, None] < tokens) & (columns[None, :] < half)
    keep_low, keep_high = _pair_keep(rows, columns, half, tl.load(seed).to(tl.uint32), threshold)
    for side in tl.static_range(2):
        here = columns + side * half
        place = rows.to(tl.int64)[:, None] * width + here[None, :]
        slope = _update(dd, a, rows, here, tokens, width, rank, keep, RANK, PRECISION)
        if DROP:
            slope = tl.where(keep_low if side == 0 else keep_high, slope, 0.0)
        slope += tl.load(du + place, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(bias + here, mask=columns < half, other=0.0).to(tl.float32)[None, :]
        value += _update(d, b, rows, here, tokens, width, rank, scale, RANK, PRECISION)
        normal, density = _normal(value)
        tl.store(u + place, value * normal, mask=mask)
        tl.store(du + place, slope * (normal + value * density), mask=mask)


def gelu_backward(du, dd, a, h, d, b, bias, seed, threshold: int, keep: float, scale: float):
    """See lora_layer.gelu_backward; `du` is overwritten."""
    (tokens, width), u = h.shape, torch.empty_like(h)
    _gelu_backward_kernel[(triton.cdiv(tokens, 32), triton.cdiv(width // 2, 64))](
        du, dd, a.to(h.dtype).contiguous(), h, d, _rows(b, h), bias, seed, u, tokens, width, d.shape[1], threshold,
        keep, scale, PRECISION=_precision(h), DROP=threshold > 0, RANK=_padded(d.shape[1]), ROWS=32, COLUMNS=64,
        num_warps=4,
    )  # fmt: skip
    return u, du


@triton.jit
def _residual_kernel(
    x, first, d_first, b_first, second, d_second, b_second, bias, out, tokens, width, rank, scale,
    PRECISION: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = rows.to(tl.int64)[:, None] * width + columns[None, :]
    mask = (rows[:, None] < tokens) & (columns[None, :] < width)
    total = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    total += tl.load(first + place, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(second + place, mask=mask, other=0.0).to(tl.float32)
    total += _update(d_first, b_first, rows, columns, tokens, width, rank, scale, RANK, PRECISION)
    total += _update(d_second, b_second, rows, columns, tokens, width, rank, scale, RANK, PRECISION)
    tl.store(out + place, total, mask=mask)


def residual(x, first, d_first, b_first, second, d_second, b_second, bias, scale: float) -> torch.Tensor:
    """See lora_layer.residual."""
    (tokens, width), out = x.shape, torch.empty_like(x)
    _residual_kernel[(triton.cdiv(tokens, 32), triton.cdiv(width, 128))](
        x, first, d_first, _rows(b_first, x), second, d_second, _rows(b_second, x), bias, out, tokens, width,
        d_first.shape[1], scale, PRECISION=_precision(x), RANK=_padded(d_first.shape[1]), ROWS=32, COLUMNS=128,
        num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _rotate_kernel(
    packed, q, k, v, d, b, bias, cos, sin, tokens, width, half, part_head, part_token, rank, scale,
    PRECISION: tl.constexpr, FORWARD: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head, heads = tl.program_id(1), tl.num_programs(1)
    everything = 3 * heads * width
    turn, rest = tl.arange(0, HALF), tl.arange(0, REST) + 2 * half
    turning = (rows[:, None] < tokens) & (turn[None, :] < half)
    staying = (rows[:, None] < tokens) & (rest[None, :] < width)
    angle = rows[:, None] * (2 * half) + turn[None, :]
    c = tl.load(cos + angle, mask=turning, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=turning, other=0.0).to(tl.float32)
    if not FORWARD:
        s = -s
    for number in tl.static_range(3):
        first = (3 * head + number) * width  # of this part in a packed row
        whole = packed + rows.to(tl.int64)[:, None] * everything + first
        part = (q if number == 0 else (k if number == 1 else v)) + rows.to(tl.int64)[:, None] * part_token
        part += head * part_head
        source = whole if FORWARD else part
        target = part if FORWARD else whole
        low = tl.load(source + turn[None, :], mask=turning, other=0.0).to(tl.float32)
        high = tl.load(source + half + turn[None, :], mask=turning, other=0.0).to(tl.float32)
        other = tl.load(source + rest[None, :], mask=staying, other=0.0).to(tl.float32)
        if FORWARD:
            at = bias + first
            low += tl.load(at + turn, mask=turn < half, other=0.0).to(tl.float32)[None, :]
            high += tl.load(at + half + turn, mask=turn < half, other=0.0).to(tl.float32)[None, :]
            other += tl.load(at + rest, mask=rest < width, other=0.0).to(tl.float32)[None, :]
            low += _update(d, b, rows, first + turn, tokens, everything, rank, scale, RANK, PRECISION)
            high += _update(d, b, rows, first + half + turn, tokens, everything, rank, scale, RANK, PRECISION)
            other += _update(d, b, rows, first + rest, tokens, everything, rank, scale, RANK, PRECISION)
        if number < 2:
            turned = low * c - high * s
            high = high * c + low * s
            low = turned
        tl.store(target + turn[None, :], low, mask=turning)
        tl.store(target + half + turn[None, :], high, mask=turning)
        tl.store(target + rest[None, :], other, mask=staying)


def split_and_rotate(packed, d, b, bias, cos, sin, heads: int, scale: float):
    """See lora_layer.split_and_rotate."""
    tokens, width = packed.shape[0], packed.shape[1] // (3 * heads)
    q, k, v = (torch.empty((1, heads, tokens, width), dtype=packed.dtype, device=packed.device) for _ in range(3))
    _rotate(packed, q, k, v, d, _rows(b, packed), bias, cos, sin, scale, forward=True)
    return q, k, v


def join_and_rotate_back(dq, dk, dv, cos, sin) -> torch.Tensor:
    """See lora_layer.split_and_rotate_backward."""
    _, heads, tokens, width = dq.shape
    packed = torch.empty((tokens, 3 * heads * width), dtype=dq.dtype, device=dq.device)
    parts = dq.contiguous(), dk.contiguous(), dv.contiguous()
    _rotate(packed, *parts, packed, packed, packed, cos, sin, 0.0, forward=False)
    return packed


def _rotate(packed, q, k, v, d, b, bias, cos, sin, scale: float, *, forward: bool) -> None:
    _, heads, tokens, width = q.shape
    half, rank = cos.shape[1] // 2, d.shape[1] if forward else 1
    _rotate_kernel[(triton.cdiv(tokens, 16), heads)](
        packed, q, k, v, d, b, bias, cos, sin, tokens, width, half, q.stride(1), q.stride(2),
        rank, scale, PRECISION=_precision(packed), FORWARD=forward, RANK=_padded(rank), ROWS=16,
        HALF=max(16, triton.next_power_of_2(half)),
        REST=max(16, triton.next_power_of_2(width - 2 * half)), num_warps=4,
    )  # fmt: skip


def _rows(b: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(width, rank) -> (rank, width), contiguous, of the dtype of `like`."""
    return b.T.to(like.dtype).contiguous()


def _padded(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))  # tl.dot's smallest side


def _precision(x: torch.Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"  # tf32 says nothing about 16-bit products
