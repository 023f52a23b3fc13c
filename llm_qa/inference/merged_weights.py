"""Linear layers for generation: the frozen weight with LoRA applied beside it, or merged into one weight.

Merging rounds W + scale * B @ A once to the compute dtype, as peft does, into a copy: the model itself, its quantised
base and its adapter are not changed.
"""

from __future__ import annotations

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_qa.models.fast.layer import LinearWeights
from llm_qa.models.fast.ops import few_rows
from llm_qa.models.fast.ops.frozen_linear import dequantize, forward, frozen_weight
from llm_qa.planning.this_gpu import free_memory_bytes

USABLE = 0.9  # of the free memory; the rest is for activations, cuBLAS and fragmentation


def reads_stored(x: Tensor, layer: LinearWeights) -> bool:
    """Whether `linear` multiplies with the weight as it is stored."""
    return few_rows.supports(len(x), x.dtype, layer.weight, len(layer.bias), x.shape[1])


def linear(x: Tensor, layer: LinearWeights, d: Tensor | None = None) -> Tensor:
    """x @ W^T + bias + x @ A^T @ B^T, where B contains LoRA's scale: (tokens, k) -> (tokens, n) of x's dtype.

    `d` is x @ A^T where it is already there.
    """
    if reads_stored(x, layer):
        if layer.a is not None and d is None:
            d = F.linear(x, layer.a)
        return few_rows.linear(x, layer.weight, layer.bias, d, layer.b)
    if layer.weight[0].dtype == x.dtype:
        y = F.linear(x, layer.weight[0], layer.bias)
    else:
        y = forward(x, layer.weight, len(layer.bias)) + layer.bias
    if layer.a is None or layer.b is None:
        return y
    return torch.addmm(y, x @ layer.a.T, layer.b.T)


def active_lora(module: torch.nn.Module) -> tuple[Tensor, Tensor] | None:
    """LoRA's a and scale * b of a peft layer with an enabled adapter; None without one (`model.disable_adapter()`)."""
    if not hasattr(module, "lora_A") or module.disable_adapters or module.merged:
        return None
    (name,) = module.active_adapters
    return module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach() * module.scaling[name]


def base_layer(module: torch.nn.Module) -> torch.nn.Module:
    """The layer that peft wraps, or the module itself."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def read_linear(module: torch.nn.Module, dtype: torch.dtype, folded: bool) -> LinearWeights:
    """The tensors of a linear layer, plain or with LoRA, to compute in `dtype`; b is multiplied by LoRA's scale."""
    base, lora = base_layer(module), active_lora(module)
    bias = base.bias.detach().to(dtype)
    if not folded:
        a, b = (value.to(dtype) for value in lora) if lora else (None, None)
        return LinearWeights(frozen_weight(base, dtype), bias, a, b)
    wide = torch.promote_types(dtype, torch.float32)
    weight = frozen_weight(base, wide)
    whole = dequantize(weight, base_shape(base), wide) if weight[0].dtype == torch.uint8 else weight[0]
    if lora:
        whole = torch.addmm(whole, lora[1].to(wide), lora[0].to(wide))
    return LinearWeights([whole.to(dtype)], bias, None, None)


def base_shape(base: torch.nn.Module) -> tuple[int, int]:
    """(outputs, inputs), also of a packed 4-bit weight."""
    return base.out_features, base.in_features


def choose_folding(modules: list[torch.nn.Module], dtype: torch.dtype, rows: int, cache_bytes: int) -> tuple[bool, str]:
    """Whether to merge the linear layers `modules` into a copy of `dtype` for `rows` answers at once, and the reason.

    It depends on the free memory of their device beside a cache of `cache_bytes`, which is not allocated yet.
    """
    bases = [base_layer(module) for module in modules]
    weight = frozen_weight(bases[0], dtype)
    if all(few_rows.supports(rows, dtype, weight, *base_shape(base)) for base in bases):
        return False, f"up to {few_rows.MOST_ROWS} rows are multiplied with weights as they are stored"
    if hasattr(bases[0], "fp8_weight"):
        return False, "fp8 products take half the time of 16-bit ones"
    if all(base.weight.dtype == dtype for base in bases) and not any(active_lora(module) for module in modules):
        return False, "there is no adapter or quantised weight to merge"
    needed = sum(outputs * inputs for outputs, inputs in map(base_shape, bases)) * dtype.itemsize
    free = free_bytes(bases[0].bias.device)
    figures = f"{gibibytes(needed)} beside a cache of {gibibytes(cache_bytes)}, {gibibytes(free)} are free"
    return needed + cache_bytes <= USABLE * free, f"the copy takes {figures}"


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of the machine."""
    return free_memory_bytes()[0] if device.type == "cuda" else psutil.virtual_memory().available


def gibibytes(count: int) -> str:
    """1.5 * 2**30 -> '1.5 GiB'."""
    return f"{count / 2**30:.1f} GiB"
