"""A product with a trained weight whose value only the layer's sum reads: it is left out where a layer is recomputed.

The backward pass of y = x @ W^T + bias needs x and W, not y. Opaque to torch.compile, like the products of
lora_layer.py, because whether a pass is a repetition is known only when it runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_qa.models.fast.ops import lora_layer


@torch.library.custom_op("llm_qa::last_product", mutates_args=())
def last_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ W^T + bias: (tokens, k) -> (tokens, n), all of one dtype; not computed inside lora_layer.recomputing()."""
    if lora_layer.is_recomputing():
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
