"""Triton kernel: a linear layer on a few rows, that reads nf4 or fp8 weights as they are stored.

With few rows the time is that of reading the weight, so it must not be converted in memory first. A program computes
OUTPUTS output features for all rows; each of its PARTS warps sums over a part of the inputs, and the parts are added at
the end. Weights become bf16 in registers and are multiplied on tensor cores, the scales of nf4's blocks in fp32 after
the product. Imported only where there is a GPU; `few_rows` has the plain PyTorch function.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import triton
import triton.language as tl

from llm_qa.models.fast.ops.frozen_linear import second_scales

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # the interpreter runs no PTX
BLOCK = 64  # weights with one scale in nf4
MOST_TILES = 4096  # of outputs
MOST_ROWS = 8  # the side of a tensor core's product that the rows take
# Output features of a program, its warps, loads in flight, and programs that share a sum: where outputs are few, one
# program for each would not fill the GPU.
SHAPE, NARROW, FEW_OUTPUTS = (32, 4, 3, 1), (32, 4, 3, 4), 8192

# nf4's values in bf16 (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
WORDS = torch.tensor(NF4).bfloat16().view(torch.int16)


def _table(part: torch.Tensor) -> list[int]:
    """16 bytes as four words of 32 bits, as signed numbers."""
    return part.to(torch.uint8).view(torch.int32).tolist()


TABLE = [*_table(WORDS & 0xFF), *_table((WORDS >> 8) & 0xFF), 0x0000FF00]

# Two bytes of four 4-bit codes to nf4's values. `prmt` picks four bytes from a table of 8 in two registers, by the low
# three bits of four 4-bit selectors; bit 3 of a code then chooses between picks from two such tables. The low and the
# high bytes of the values are picked separately. t0 to t8 are the words of TABLE, combined with a zero that
# the compiler does not know, so that it keeps them in registers: it would copy constants there before every use.
_TWO_BYTES = """
    prmt.b32 chosen, t8, 0, top;
    prmt.b32 low0, t0, t1, codes;
    prmt.b32 low1, t2, t3, codes;
    prmt.b32 high0, t4, t5, codes;
    prmt.b32 high1, t6, t7, codes;
    lop3.b32 low0, low0, low1, chosen, 0xD8;
    lop3.b32 high0, high0, high1, chosen, 0xD8;
    prmt.b32 {even}, low0, high0, 0x7351;
    prmt.b32 {odd}, low0, high0, 0x6240;
"""
# $0 and $1: the first weights (high nibbles) of the four bytes $4; $2 and $3: the second ones.
NF4_ASM = tl.constexpr(
    "{ .reg .b32 codes, top, chosen, low0, low1, high0, high1, zero, t<9>;"
    + "mov.u32 zero, %lanemask_lt; mov.u32 top, %lanemask_gt; and.b32 zero, zero, top;"
    + "".join(f"xor.b32 t{number}, zero, {word};" for number, word in enumerate(TABLE))
    + "and.b32 codes, $4, 0x77777777; shr.b32 top, $4, 3; and.b32 top, top, 0x11111111;"
    + _TWO_BYTES.format(even="$0", odd="$2")
    + "shr.b32 codes, codes, 16; shr.b32 top, top, 16;"
    + _TWO_BYTES.format(even="$1", odd="$3")
    + "}"
)
# Four bytes of e4m3, $2, to bf16: sign, exponent and mantissa are put where bf16 has them, which makes a number 2^-120
# times as large. The GPU's own conversion goes through fp32, at a quarter of the rate.
_TWO_FP8 = """
    prmt.b32 in, 0, $2, {bytes};
    shr.b32 out, in, 4;
    and.b32 out, out, 0x07F007F0;
    lop3.b32 out, in, 0x80008000, out, 0xEA;
    fma.rn.bf16x2 {out}, out, scale, zero;
"""
FP8_ASM = tl.constexpr(
    "{ .reg .b32 in, out, scale, zero; mov.b32 scale, 0x7B807B80; mov.b32 zero, 0x80008000;"
    + _TWO_FP8.format(bytes="0x5040", out="$0")
    + _TWO_FP8.format(bytes="0x7060", out="$1")
    + "}"
)


@triton.jit
def _rounded(value):
    """To the nearest bf16, but kept in fp32: the interpreter cannot multiply matrices of bf16."""
    return value.to(tl.bfloat16).to(tl.float32)


@triton.jit
def _nf4_values(packed, code, INTERPRETED: tl.constexpr):
    """The bf16 values of the first (high nibble) and second weight of each byte, before scaling."""
    if INTERPRETED:
        return _rounded(tl.load(code + (packed >> 4))), _rounded(tl.load(code + (packed & 15)))
    return tl.inline_asm_elementwise(
        NF4_ASM, "=r,=r,=r,=r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
    )


@triton.jit
def _fp8_values(stored, INTERPRETED: tl.constexpr):
    """e4m3 to bf16, exactly."""
    if INTERPRETED:
        return stored.to(tl.float32)
    return tl.inline_asm_elementwise(FP8_ASM, "=r,=r,r", [stored], dtype=tl.bfloat16, is_pure=True, pack=4)


@triton.jit
def _few_rows_kernel(
    x, weight, absmax, code, absmax2, code2, offset, scale, bias, d, b, sums, arrived, out, rows, inputs, outputs, rank,
    NF4: tl.constexpr, NESTED: tl.constexpr, LORA: tl.constexpr, INTERPRETED: tl.constexpr, ROWS: tl.constexpr,
    RANK: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    part = tl.arange(0, PARTS) * BLOCK
    total = tl.zeros((PARTS, OUTPUTS, ROWS), tl.float32)
    start = number.to(tl.int64)[None, :, None] * inputs
    there = (row < rows)[None, :, None]
    share = tl.multiple_of(inputs // SPLITS, PARTS * BLOCK)  # without this, weights would be loaded two bytes at a time
    if SPLITS > 1:
        part += tl.multiple_of(tl.program_id(1) * share, PARTS * BLOCK)
    x_place = row[None, :, None] * inputs + part[:, None, None] + tl.arange(0, BLOCK)[None, None, :]
    for first in range(0, share, PARTS * BLOCK):
        x_values = tl.load(x + first + x_place, mask=there, other=0.0)
        if INTERPRETED:
            x_values = x_values.to(tl.float32)
        if NF4:
            byte = (first + part)[:, None, None] // 2 + tl.arange(0, BLOCK // 2)[None, None, :]
            even, odd = _nf4_values(tl.load(weight + start // 2 + byte), code, INTERPRETED)
            x_even, x_odd = tl.split(tl.reshape(x_values, (PARTS, ROWS, BLOCK // 2, 2)))
            product = tl.dot(even, tl.permute(x_even, (0, 2, 1)))
            product = tl.dot(odd, tl.permute(x_odd, (0, 2, 1)), product)
            block = number[None, :] * (inputs // BLOCK) + (first + part)[:, None] // BLOCK  # one scale each
            factor = tl.load(absmax + block)
            if NESTED:
                factor = tl.load(code2 + factor) * tl.load(absmax2 + block // 256) + tl.load(offset)
            total += product * factor[:, :, None]
        else:
            column = (first + part)[:, None, None] + tl.arange(0, BLOCK)[None, None, :]
            values = _fp8_values(tl.load(weight + start + column), INTERPRETED)
            total = tl.dot(values, tl.permute(x_values, (0, 2, 1)), total)
    y = tl.sum(total, 0)
    last = True
    if SPLITS > 1:  # the program that arrives last adds what all have summed
        place = sums + row[None, :] * outputs + number[:, None]
        tl.store(place + tl.program_id(1) * ROWS * outputs, y)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == SPLITS - 1
        if last:
            tl.store(arrived + tl.program_id(0), 0)  # for the next launch
            y = tl.zeros((OUTPUTS, ROWS), tl.float32)
            for split in range(SPLITS):  # always in this order, so that rounding is always the same
                y += tl.load(place + split * ROWS * outputs, cache_modifier=".cg")
    if last:
        _finish(y, scale, bias, d, b, out, number, row, rows, outputs, rank, NF4, LORA, RANK)


@triton.jit
def _finish(
    y, scale, bias, d, b, out, number, row, rows, outputs, rank, NF4: tl.constexpr, LORA: tl.constexpr,
    RANK: tl.constexpr,
):  # fmt: skip
    """Scale a sum (outputs, rows), add bias and LoRA's update, and store it."""
    if not NF4:
        y = y * tl.load(scale + number)[:, None]
    y += tl.load(bias + number).to(tl.float32)[:, None]
    if LORA:
        ranks = tl.arange(0, RANK)[None, :]
        left = tl.load(b + number[:, None] * rank + ranks, mask=ranks < rank, other=0.0).to(tl.float32)
        inside = (row < rows)[:, None] & (ranks < rank)
        right = tl.load(d + row[:, None] * rank + ranks, mask=inside, other=0.0).to(tl.float32)
        y += tl.sum(left[:, None, :] * right[None, :, :], 2)
    tl.store(out + row[None, :] * outputs + number[:, None], y.to(out.dtype.element_ty), mask=(row < rows)[None, :])


@cache
def arrivals(device: torch.device) -> torch.Tensor:
    """How many programs of each tile of outputs have finished, 0 between launches; for one stream at a time."""
    return torch.zeros(MOST_TILES, dtype=torch.int32, device=device)


def few_rows(x, weight: list[torch.Tensor], bias, d, b, shape=None) -> torch.Tensor:
    """See few_rows.linear; sizes must be multiples of BLOCK. `shape` is as SHAPE."""
    (rows, inputs), outputs = x.shape, len(bias)
    tile, parts, stages, splits = shape or (NARROW if outputs <= FEW_OUTPUTS else SHAPE)
    nf4 = weight[0].dtype == torch.uint8
    # what a format does not have is not read: any pointer stands there
    packed, absmax, code, absmax2, code2, offset, scale = (
        [*weight[:3], *second_scales(weight), weight[1]] if nf4 else [weight[0], *[weight[1]] * 6]
    )
    while outputs % tile:
        tile //= 2
    while inputs % (parts * BLOCK):
        parts //= 2
    while inputs % (splits * parts * BLOCK):
        splits //= 2
    rank = 1 if d is None else d.shape[1]
    out = x.new_empty((rows, outputs))
    sums = out if splits == 1 else torch.empty((splits, MOST_ROWS, outputs), device=x.device)
    _few_rows_kernel[(outputs // tile, splits)](
        x, packed, absmax, code, absmax2, code2, offset, scale, bias, x if d is None else d, x if b is None else b,
        sums, arrivals(x.device), out, rows, inputs, outputs, rank,
        NF4=nf4, NESTED=absmax.dtype == torch.uint8, LORA=d is not None,
        INTERPRETED=INTERPRETED, ROWS=MOST_ROWS, RANK=triton.next_power_of_2(rank), OUTPUTS=tile, PARTS=parts,
        SPLITS=splits, BLOCK=BLOCK, num_warps=parts, num_stages=stages,
    )  # fmt: skip
    return out


@triton.jit
def _norms_kernel(
    x, first_weight, first_bias, second_weight, second_bias, first_a, second_a, first, first_d, second, second_d, width,
    rank, eps, LORA: tl.constexpr, RANK: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, SIZE)
    value = tl.load(x + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / width
    value = tl.where(columns < width, value - mean, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    ranks = tl.arange(0, RANK)
    first_sum = tl.zeros((RANK, CHUNK), tl.float32)
    second_sum = tl.zeros((RANK, CHUNK), tl.float32)
    for start in range(0, width, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = column < width
        normal = (tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32) - mean) * factor
        weight = tl.load(first_weight + column, mask=inside, other=0.0).to(tl.float32)
        out = normal * weight + tl.load(first_bias + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(first + row * width + column, out.to(first.dtype.element_ty), mask=inside)
        weight = tl.load(second_weight + column, mask=inside, other=0.0).to(tl.float32)
        other = normal * weight + tl.load(second_bias + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(second + row * width + column, other.to(second.dtype.element_ty), mask=inside)
        if LORA:
            place, mask = ranks[:, None] * width + column[None, :], (ranks < rank)[:, None] & inside[None, :]
            first_sum += tl.load(first_a + place, mask=mask, other=0.0).to(tl.float32) * out[None, :]
            second_sum += tl.load(second_a + place, mask=mask, other=0.0).to(tl.float32) * other[None, :]
    if LORA:
        place = row * rank + ranks
        tl.store(first_d + place, tl.sum(first_sum, 1).to(first_d.dtype.element_ty), mask=ranks < rank)
        tl.store(second_d + place, tl.sum(second_sum, 1).to(second_d.dtype.element_ty), mask=ranks < rank)


def norms(x, first, second, eps: float, first_a, second_a, chunk=2048, warps=16) -> list:
    """See few_rows.norms."""
    (rows, width), lora = x.shape, first_a is not None
    rank = first_a.shape[0] if lora else 1
    outputs = [torch.empty_like(x), x.new_empty((rows, rank)), torch.empty_like(x), x.new_empty((rows, rank))]
    _norms_kernel[(rows,)](
        x, *first, *second, first_a if lora else x, second_a if lora else x, *outputs, width, rank, eps,
        LORA=lora, RANK=triton.next_power_of_2(rank), SIZE=triton.next_power_of_2(width), CHUNK=chunk, num_warps=warps,
    )  # fmt: skip
    return outputs if lora else [outputs[0], None, outputs[2], None]
