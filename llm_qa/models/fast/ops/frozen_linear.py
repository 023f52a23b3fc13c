"""Products with a frozen weight in any storage format: `forward` is x @ W^T, `backward` is dy @ W.

A weight is passed as a list of tensors, because a custom operation takes tensors:

    [W]                                              in 16 or 32 bits
    [packed, absmax, code]                           bitsandbytes' nf4
    [packed, absmax, code, absmax2, code2, offset]   the same, its scales quantised too
    [..., row scales (n, 1), column scales (k, 1)]   nf4 that each product converts to fp8
    [W, scale, W^T, scale]                           fp8, in the layouts of both products

nf4 multiplied in fp8 is rounded twice: the error of nf4 is about 9% of a weight, that of e4m3 another 2%.
"""

from __future__ import annotations

import torch

from llm_qa.models.fast.ops import fp8

NF4_BLOCK, NESTED_BLOCK = 64, 256  # weights per scale, scales per second-level scale
FP8_WIDTH = 64  # a weight's sides must be multiples of it: fp8 products need 16, nf4's blocks 64
FP8_LAYOUTS = 2  # by output row for the forward product, by input row for the gradient: one byte per weight each


def frozen_weight(layer: torch.nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    """The tensors of a frozen linear layer, 16-bit and nf4's rounded to `dtype` when used."""
    if hasattr(layer, "fp8_weight"):
        return [layer.fp8_weight, layer.fp8_scale, layer.fp8_transposed, layer.fp8_transposed_scale]
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return [layer.weight.detach().to(dtype)]
    assert state.quant_type == "nf4"
    assert state.blocksize == NF4_BLOCK
    packed = layer.weight.detach().as_subclass(torch.Tensor).view(torch.uint8).view(-1)
    if not state.nested:
        return [packed, state.absmax, state.code]
    assert state.state2.blocksize == NESTED_BLOCK
    offset = state.offset.reshape(1).float()
    return [packed, state.absmax, state.code, state.state2.absmax, state.state2.code, offset]


def dequantize(weight: list[torch.Tensor], shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """bitsandbytes' nf4 tensors -> (n, k) of `dtype`, equal to bitsandbytes' own to the last bit."""
    packed, absmax, code = weight[:3]
    absmax2, code2, offset = second_scales(weight)
    if packed.is_cuda:
        from llm_qa.models.fast.ops import lora_kernels

        out = torch.empty(shape, dtype=dtype, device=packed.device)
        return lora_kernels.dequantize_nf4(packed, absmax, code, absmax2, code2, offset, out)
    if weight[3:]:
        second = absmax2.repeat_interleave(NESTED_BLOCK)[: absmax.numel()]
        absmax = code2[absmax.int()] * second + offset
    values = torch.stack([code[(packed >> 4).int()], code[(packed & 15).int()]], dim=1).view(-1)
    return (values * absmax.repeat_interleave(NF4_BLOCK)[: values.numel()]).view(shape).to(dtype)


def second_scales(weight: list[torch.Tensor]) -> list[torch.Tensor]:
    """absmax2, code2 and offset of nf4 tensors; where there are none, placeholders for a kernel's arguments."""
    return weight[3:] or [weight[1]] * 3


# --- nf4 for products in fp8 ------------------------------------------------------------------------------------------


def rounded_per_use(weight: list[torch.Tensor]) -> bool:
    """Whether the list is nf4 with fp8 scales, which each product converts to fp8."""
    return weight[0].dtype == torch.uint8 and weight[-1].ndim == 2


def with_fp8_scales(weight: list[torch.Tensor], shape: tuple[int, int]) -> list[torch.Tensor]:
    """nf4 tensors -> the same followed by the fp8 scales of rows and columns, computed once."""
    whole = dequantize(weight, shape, torch.bfloat16)
    # The infinity norm needs no copy of the absolute values.
    largest = [torch.linalg.vector_norm(whole, torch.inf, dim=dim, dtype=torch.float32) for dim in (1, 0)]
    return [*weight, *(fp8.scale_of(value)[:, None] for value in largest)]


def nf4_to_fp8(weight: list[torch.Tensor], shape: tuple[int, int], transposed: bool) -> list[torch.Tensor]:
    """Of nf4 tensors with fp8 scales: e4m3 (n, k) and scales (n, 1), `transposed` (k, n) and (k, 1); k in 64s."""
    *weight, by_row, by_column = weight
    scale = by_column if transposed else by_row
    if weight[0].is_cuda:
        from llm_qa.models.fast.ops import lora_kernels

        out = torch.empty(shape[::-1] if transposed else shape, dtype=torch.float8_e4m3fn, device=scale.device)
        packed, absmax, code = weight[:3]
        absmax2, code2, offset = second_scales(weight)
        lora_kernels.nf4_to_fp8(packed, absmax, code, absmax2, code2, offset, scale, out, transposed)
        return [out, scale]
    whole = dequantize(weight, shape, torch.float32)
    return [((whole.T if transposed else whole) / scale).contiguous().to(torch.float8_e4m3fn), scale]


def cache_dequantized(weight: list[torch.Tensor], shape: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    """nf4 tensors, or 16-bit ones for products in fp8, in the format that products use without conversion.

    nf4 becomes [W] of `dtype`; nf4 with fp8 scales and 16-bit weights become fp8 in both layouts.
    """
    if weight[0].dtype != torch.uint8:
        (whole,) = weight
        return [*fp8.quantize_rows(whole), *fp8.quantize_rows(whole.T.contiguous())]
    if rounded_per_use(weight):
        return [*nf4_to_fp8(weight, shape, False), *nf4_to_fp8(weight, shape, True)]
    return [dequantize(weight, shape, dtype)]


# --- products ---------------------------------------------------------------------------------------------------------


def forward(x: torch.Tensor, weight: list[torch.Tensor], outputs: int) -> torch.Tensor:
    """x @ W^T: (tokens, k) -> (tokens, outputs) of x's dtype."""
    shape = outputs, x.shape[1]
    if weight[0].dtype == torch.float8_e4m3fn:
        return fp8.product(x, *weight[:2])
    if rounded_per_use(weight):
        return fp8.product(x, *nf4_to_fp8(weight, shape, transposed=False))
    if weight[0].dtype == torch.uint8:
        return x @ dequantize(weight, shape, x.dtype).T
    return x @ weight[0].T


def backward(dy: torch.Tensor, weight: list[torch.Tensor], inputs: int) -> torch.Tensor:
    """dy @ W: (tokens, n) -> (tokens, inputs) of dy's dtype."""
    shape = dy.shape[1], inputs
    if weight[0].dtype == torch.float8_e4m3fn:
        return fp8.product(dy, *weight[2:])
    if rounded_per_use(weight):
        return fp8.product(dy, *nf4_to_fp8(weight, shape, transposed=True))
    if weight[0].dtype == torch.uint8:
        return dy @ dequantize(weight, shape, dy.dtype)
    return dy @ weight[0]
