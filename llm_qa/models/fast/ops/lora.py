"""The products of LoRA: a large matrix with a small one of rank r, dropout of the input included.

LoRA adds scale * dropout(x) @ A^T @ B^T to a linear layer (Hu et al. 2021, arXiv:2106.09685). Written with
torch.nn.functional, it writes and reads a copy of x after dropout, and the update before it is added. Here each large
matrix is read once. The dropout mask is a hash of an element's index: it is not saved, the backward pass and
recomputation compute it again, and it is the same on CPU and GPU.

`seed` is an int64 tensor of one element on x's device, so that a compiled graph does not depend on its value. A mask is
given as a `threshold` of 16 bits (`dropout_threshold`): 0 drops nothing.
"""

from __future__ import annotations

import torch

LEVELS = 1 << 16


def dropout_threshold(probability: float) -> int:
    """The probability in 1/65,536: 0.05 becomes 3,277 (0.050003). Below 1.0."""
    return round(probability * LEVELS)


def keep_scale(threshold: int) -> float:
    """1 / (1 - p): what kept elements are multiplied by."""
    return LEVELS / (LEVELS - threshold)


def keep_mask(tokens: int, width: int, seed: torch.Tensor, threshold: int) -> torch.Tensor:
    """Which elements of a (tokens, width) matrix are kept, bool. Element (t, k) and (t, k + width / 2) share a hash."""
    half, low32 = width // 2, 0xFFFFFFFF
    index = torch.arange(tokens * half, dtype=torch.int64, device=seed.device).view(tokens, half)
    h = (index * 2654435769 + seed) & low32
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & low32
    h = ((h ^ (h >> 15)) * 0x846CA68B) & low32
    h = h ^ (h >> 16)
    return torch.cat([(h & 0xFFFF) >= threshold, (h >> 16) >= threshold], dim=1)


def _dropped(x: torch.Tensor, seed: torch.Tensor, threshold: int) -> torch.Tensor:
    tokens, width = x.shape
    return x * keep_mask(tokens, width, seed, threshold) if threshold else x


def shrink(x: torch.Tensor, a: torch.Tensor, seed: torch.Tensor, threshold: int, scale: float) -> torch.Tensor:
    """scale * (kept x) @ a^T: (tokens, width), (rank, width) -> (tokens, rank) of x's dtype, summed in fp32."""
    if x.is_cuda:
        from llm_qa.models.fast.ops import lora_kernels

        return lora_kernels.shrink(x, a, seed, threshold, scale)
    return scale * (_dropped(x, seed, threshold) @ a.to(x.dtype).T)


def expand(
    d: torch.Tensor, b: torch.Tensor, seed: torch.Tensor, threshold: int, scale: float, base: torch.Tensor
) -> torch.Tensor:
    """base += kept(scale * d @ b), in place: (tokens, rank), (rank, width), base (tokens, width). Returns base."""
    if d.is_cuda:
        from llm_qa.models.fast.ops import lora_kernels

        return lora_kernels.expand(d, b, seed, threshold, scale, base)
    return base.add_(_dropped(scale * (d @ b.to(d.dtype)), seed, threshold))


def weight_grad(
    d: torch.Tensor, y: torch.Tensor, seed: torch.Tensor, threshold: int, scale: float, like: torch.Tensor
) -> torch.Tensor:
    """scale * d^T @ (kept y): (tokens, rank), (tokens, width) -> (rank, width), summed in fp32.

    The result has the dtype and strides of `like` (rank, width).
    """
    if y.is_cuda:
        from llm_qa.models.fast.ops import lora_kernels

        return lora_kernels.weight_grad(d, y, seed, threshold, scale, like)
    product = scale * (d.float().T @ _dropped(y, seed, threshold).float())
    return torch.empty_like(like).copy_(product)
