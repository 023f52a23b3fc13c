"""Products with a frozen weight, however it is kept: `forward` is x @ W^T, `backward` is dy @ W.

A weight travels as a list of tensors, because that is what a compiled graph can be given: [W] in 16 or 32 bits;
[packed, absmax, code, absmax2, code2, offset] of bitsandbytes' nf4; [W, scale, W^T, scale] of fp8.
"""

from __future__ import annotations

import torch

from llm_qa.models.fast import fp8

NF4_BLOCK, NESTED_BLOCK = 64, 256  # weights a scale, scales a second scale


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
    if packed.is_cuda:
        from llm_qa.models.fast import kernels

        absmax2, code2, offset = weight[3:] or (absmax, absmax, absmax)
        out = torch.empty(shape, dtype=dtype, device=packed.device)
        return kernels.dequantize_nf4(packed, absmax, code, absmax2, code2, offset, out)
    if weight[3:]:
        absmax2, code2, offset = weight[3:]
        second = absmax2.repeat_interleave(NESTED_BLOCK)[: absmax.numel()]
        absmax = code2[absmax.int()] * second + offset
    values = torch.stack([code[(packed >> 4).int()], code[(packed & 15).int()]], dim=1).view(-1)
    return (values * absmax.repeat_interleave(NF4_BLOCK)[: values.numel()]).view(shape).to(dtype)


def forward(x: torch.Tensor, weight: list[torch.Tensor], outputs: int) -> torch.Tensor:
    """x @ W^T: (tokens, k) -> (tokens, outputs) of x's dtype."""
    if weight[0].dtype == torch.float8_e4m3fn:
        return fp8.product(x, weight[0], weight[1])
    if weight[0].dtype == torch.uint8:
        return x @ dequantize(weight, (outputs, x.shape[1]), x.dtype).T
    return x @ weight[0].T


def backward(dy: torch.Tensor, weight: list[torch.Tensor], inputs: int) -> torch.Tensor:
    """dy @ W: (tokens, n) -> (tokens, inputs) of dy's dtype."""
    if weight[0].dtype == torch.float8_e4m3fn:
        return fp8.product(dy, weight[2], weight[3])
    if weight[0].dtype == torch.uint8:
        return dy @ dequantize(weight, (dy.shape[1], inputs), dy.dtype)
    return dy @ weight[0]
