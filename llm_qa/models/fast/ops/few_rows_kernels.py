"""Triton kernel: a linear layer on a few rows, that reads nf4 or fp8 weights as they are stored.

With few rows the time is that of reading the weight, so it must not be converted in memory first. A program computes
OUTPUTS output features for all rows; each of its PARTS warps sums over a part of the inputs, and the parts are added at
the end. Weights become bf16 in registers and are multiplied on tensor cores, the scales of nf4's blocks in fp32 after
the product. Imported only where there is a GPU; `few_rows` has the plain PyTorch function.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from llm_qa.models.fast.ops.frozen_linear import second_scales

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # the interpreter runs no PTX
BLOCK = 64  # weights with one scale in nf4
MOST_ROWS = 8  # the side of a tensor core's product that the rows take
SHAPE = (32, 4, 3)  # output features of a program, its warps, and loads in flight

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
_TWO_CODES = """
    and.b32 codes, in, 0x7777;
    shr.b32 top, in, 3;
    and.b32 top, top, 0x1111;
    prmt.b32 top, t8, 0, top;
    prmt.b32 low0, t0, t1, codes;
    prmt.b32 low1, t2, t3, codes;
    prmt.b32 high0, t4, t5, codes;
    prmt.b32 high1, t6, t7, codes;
    lop3.b32 low0, low0, low1, top, 0xD8;
    lop3.b32 high0, high0, high1, top, 0xD8;
    prmt.b32 {even}, low0, high0, 0x7351;
    prmt.b32 {odd}, low0, high0, 0x6240;
"""
# $0 and $1: the first weights (high nibbles) of the four bytes $4; $2 and $3: the second ones.
NF4_ASM = tl.constexpr(
    "{ .reg .b32 in, codes, top, low0, low1, high0, high1, zero, t<9>;"
    + "mov.u32 zero, %lanemask_lt; mov.u32 in, %lanemask_gt; and.b32 zero, zero, in;"
    + "".join(f"xor.b32 t{number}, zero, {word};" for number, word in enumerate(TABLE))
    + "mov.b32 in, $4;"
    + _TWO_CODES.format(even="$0", odd="$2")
    + "shr.b32 in, $4, 16;"
    + _TWO_CODES.format(even="$1", odd="$3")
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
    x, weight, absmax, code, absmax2, code2, offset, scale, bias, d, b, out, rows, inputs, outputs, rank,
    NF4: tl.constexpr, NESTED: tl.constexpr, LORA: tl.constexpr, INTERPRETED: tl.constexpr, ROWS: tl.constexpr,
    RANK: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    part = tl.arange(0, PARTS) * BLOCK
    total = tl.zeros((PARTS, OUTPUTS, ROWS), tl.float32)
    start = number.to(tl.int64)[None, :, None] * inputs
    x_place = row[None, :, None] * inputs + part[:, None, None] + tl.arange(0, BLOCK)[None, None, :]
    there = (row < rows)[None, :, None]
    for first in range(0, inputs, PARTS * BLOCK):
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


def few_rows(x, weight: list[torch.Tensor], bias, d, b, shape=None) -> torch.Tensor:
    """See few_rows.linear; sizes must be multiples of BLOCK. `shape` is as SHAPE."""
    (rows, inputs), outputs = x.shape, len(bias)
    tile, parts, stages = shape or SHAPE
    nf4 = weight[0].dtype == torch.uint8
    # what a format does not have is not read: any pointer stands there
    packed, absmax, code, absmax2, code2, offset, scale = (
        [*weight[:3], *second_scales(weight), weight[1]] if nf4 else [weight[0], *[weight[1]] * 6]
    )
    while outputs % tile:
        tile //= 2
    while inputs % (parts * BLOCK):
        parts //= 2
    rank = 1 if d is None else d.shape[1]
    out = x.new_empty((rows, outputs))
    _few_rows_kernel[(outputs // tile,)](
        x, packed, absmax, code, absmax2, code2, offset, scale, bias, x if d is None else d, x if b is None else b, out,
        rows, inputs, outputs, rank,
        NF4=nf4, NESTED=absmax.dtype == torch.uint8, LORA=d is not None,
        INTERPRETED=INTERPRETED, ROWS=MOST_ROWS, RANK=triton.next_power_of_2(rank), OUTPUTS=tile, PARTS=parts,
        BLOCK=BLOCK, num_warps=parts, num_stages=stages,
    )  # fmt: skip
    return out
