"""A linear layer on a few rows, as one answer that is generated has: the weight is read as it is stored.

`frozen_linear` converts an nf4 weight to 16 bits in memory for every product, which is little beside a product with
thousands of rows, and most of the time with one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_qa.models.fast.ops.frozen_linear import NF4_BLOCK, dequantize

MOST_ROWS = 8  # what the kernel multiplies at once


def supports(rows: int, dtype: torch.dtype, weight: list[Tensor], outputs: int, inputs: int) -> bool:
    """Whether `linear` takes so many rows of `dtype` and an nf4 or fp8 weight on a GPU; sizes in 64s."""
    stored = weight[0].dtype in (torch.uint8, torch.float8_e4m3fn) and weight[0].is_cuda
    return stored and rows <= MOST_ROWS and dtype == torch.bfloat16 and not (outputs % NF4_BLOCK or inputs % NF4_BLOCK)


def linear(x: Tensor, weight: list[Tensor], bias: Tensor, d: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """x @ W^T + bias + d @ b^T: (rows, k), bias (n,), d (rows, rank) and b (n, rank) of LoRA -> (rows, n) of x's dtype.

    `weight` is nf4 or fp8, see `frozen_linear`; unlike there, x is not rounded to fp8.
    """
    if x.is_cuda:
        from llm_qa.models.fast.ops import few_rows_kernels

        return few_rows_kernels.few_rows(x, weight, bias, d, b)
    if weight[0].dtype == torch.uint8:
        whole = dequantize(weight, (len(bias), x.shape[1]), torch.float32)
    else:
        whole = weight[0].float() * weight[1]
    y = F.linear(x.float(), whole, bias.float())
    return (y if d is None or b is None else y + d.float() @ b.float().T).to(x.dtype)


Norm = tuple[Tensor, Tensor]  # weight and bias


def norms(
    x: Tensor, first: Norm, second: Norm, eps: float, first_a: Tensor | None, second_a: Tensor | None
) -> list[Tensor | None]:
    """Two layer norms of x (rows, width), each followed by its product with LoRA's a (rank, width), where there is one.

    Returns the first norm (rows, width), its d (rows, rank) or None, and the same of the second, in x's dtype.
    """
    if x.is_cuda:
        from llm_qa.models.fast.ops import few_rows_kernels

        return few_rows_kernels.norms(x, first, second, eps, first_a, second_a)
    outputs: list[Tensor | None] = []
    for (weight, bias), a in ((first, first_a), (second, second_a)):
        y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        outputs += [y, None if a is None else F.linear(y, a)]
    return outputs
