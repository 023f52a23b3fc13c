"""Output head and cross entropy in chunks: a whole batch's logits (4 bytes x 30,080 per token) never exist.

The gradient of a chunk is computed in the forward pass, while its logits are in memory (as in Liger-Kernel's fused
linear cross entropy, arXiv:2410.10989); the backward pass only scales it.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2048  # tokens; 123 MB of 16-bit logits at 30,080 words


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] of each row (rows,), fp32 in nats, and its gradient (rows, words) in logits' dtype.

    Both are 0 where the target is below 0; it must be below words. `logits` may be overwritten.
    """
    if logits.is_cuda:
        from llm_qa.models.fast.ops import cross_entropy_kernels

        return cross_entropy_kernels.cross_entropy(logits, targets)
    has_label, target, dtype = targets[:, None] >= 0, targets[:, None].clamp_min(0), logits.dtype
    logits = logits.float()
    normalizer = logits.logsumexp(dim=1, keepdim=True)
    losses = torch.where(has_label, normalizer - logits.gather(1, target), 0.0)
    grad = (logits - normalizer).exp()  # softmax
    grad = grad.scatter_add(1, target, -torch.ones_like(target, dtype=grad.dtype))
    return losses[:, 0], torch.where(has_label, grad, 0.0).to(dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(targets), CHUNK):
            part, target = hidden[begin : begin + CHUNK], targets[begin : begin + CHUNK]
            losses, grad = cross_entropy(part @ weight.T, target)
            total += losses.sum()
            torch.mm(grad, weight, out=d_hidden[begin : begin + CHUNK])
            if d_weight is not None:
                d_weight += grad.T @ part
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = d_hidden * grad.to(d_hidden.dtype)
        return d_hidden, None if d_weight is None else (d_weight * grad).to(d_hidden.dtype), None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight^T)[target], in nats, a fp32 scalar.

    hidden (tokens, d) and weight (words, d) of one dtype, targets (tokens,) int64, below 0 where there is no label:
    those tokens are computed too, so leave them out before the call. Softmax and sum are fp32.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets)
