"""Products with frozen weights in fp8 (e4m3), one scale per row: twice bf16's matrix rate on Hopper, Ada and later.

Both factors of a product are scaled by row to fill e4m3's range and multiplied with fp32 accumulation
(Micikevicius et al. 2022, arXiv:2209.05433). e4m3 is a floating-point format: where one channel of activations is 100
times larger than the others, these keep their three mantissa bits, which 8-bit integers would lose. One scale per row
is therefore enough. The GPU needs both factors contiguous along the summed dimension, so a weight is stored twice: by
output row for the forward product, by input row for the gradient of the input.
"""

from __future__ import annotations

import torch

LARGEST = 448.0  # the largest number of e4m3


def scale_of(largest: torch.Tensor) -> torch.Tensor:
    """The scale that numbers of at most `largest` are divided by to fill e4m3's range."""
    return largest.clamp_min(1e-12) / LARGEST


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, width) -> float8_e4m3fn of the same shape and fp32 scales (rows, 1); their product is x, rounded."""
    if x.is_cuda:
        from llm_qa.models.fast.ops import lora_kernels

        return lora_kernels.rows_to_fp8(x)
    scale = scale_of(x.float().abs().amax(dim=1, keepdim=True))
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x @ (weight * scale)^T with x rounded to fp8 by row: (tokens, k), fp8 (n, k), fp32 (n, 1) -> (tokens, n)."""
    rounded, x_scale = quantize_rows(x)
    if x.is_cuda:
        # use_fast_accum: an error of 0.2 to 0.4%, beside 4% from rounding to fp8, and faster.
        return torch._scaled_mm(
            rounded, weight.t(), scale_a=x_scale, scale_b=scale.t(), out_dtype=x.dtype, use_fast_accum=True
        )
    return ((rounded.float() @ weight.float().T) * x_scale * scale.T).to(
        x.dtype
    )  # the same numbers on a device without fp8 products


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return product(x.reshape(-1, x.shape[-1]), layer.fp8_weight, layer.fp8_scale).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy):
        layer = ctx.layer
        dx = product(dy.reshape(-1, dy.shape[-1]), layer.fp8_transposed, layer.fp8_transposed_scale)
        return dx.view(*dy.shape[:-1], -1), None


class Fp8Linear(torch.nn.Linear):
    """A frozen linear layer in fp8, made from one in 16 or 32 bits. Its weights are stored as uint8."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.bias = layer.bias
        weight, scale = quantize_rows(layer.weight.data)
        transposed, transposed_scale = quantize_rows(layer.weight.data.T.contiguous())
        self.weight = torch.nn.Parameter(weight.view(torch.uint8), requires_grad=False)
        self.register_buffer("fp8_scale", scale, persistent=False)
        self.register_buffer("transposed", transposed.view(torch.uint8), persistent=False)
        self.register_buffer("fp8_transposed_scale", transposed_scale, persistent=False)

    @property
    def fp8_weight(self) -> torch.Tensor:
        """float8_e4m3fn (outputs, inputs), to be multiplied by fp8_scale (outputs, 1)."""
        return self.weight.detach().view(torch.float8_e4m3fn)

    @property
    def fp8_transposed(self) -> torch.Tensor:
        """float8_e4m3fn (inputs, outputs), to be multiplied by fp8_transposed_scale (inputs, 1)."""
        return self.transposed.view(torch.float8_e4m3fn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs) in autocast's dtype, or x's."""
        kind = x.device.type
        out = _Product.apply(x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x, self)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def quantize_fp8(model: torch.nn.Module, linears: dict[str, torch.nn.Module]) -> None:
    """Replace linear layers (by full name) by fp8 ones, one at a time, so that at most one is in memory twice."""
    for name, layer in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Fp8Linear(layer))
