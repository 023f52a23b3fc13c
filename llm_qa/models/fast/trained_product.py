"""A linear layer with a trained weight whose output is only added to the residual: recomputation skips it.

The backward pass of y = x @ W^T + bias needs x and W, not y. A custom operation, opaque to torch.compile like those of
lora_layer.py, because only at run time is it known whether a forward pass is a recomputation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_qa.models.fast.ops.recomputation import is_recomputing


@torch.library.custom_op("llm_qa::last_product", mutates_args=())
def last_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ W^T + bias: (tokens, k) -> (tokens, n), all of one dtype; not computed inside recomputing()."""
    if is_recomputing():
        return x.new_empty((x.shape[0], weight.shape[0]))
    return F.linear(x, weight, bias)


@last_product.register_fake
def _(x, weight, bias):
    return x.new_empty((x.shape[0], weight.shape[0]))


def _keep(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    return grad @ weight, grad.T @ x, grad.sum(0)


last_product.register_autograd(_backward, setup_context=_keep)
