"""A Triton kernel for softmax cross entropy and its gradient that reads the logits once.

Imported only where there is a GPU; `cross_entropy.cross_entropy` says what it computes, and tests compare the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _cross_entropy_kernel(logits, targets, losses, words, WORDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    columns = tl.arange(0, WORDS)
    inside = columns < words
    place = logits + row * words + columns
    value = tl.load(place, mask=inside, other=float("-inf")).to(tl.float32)
    hit = columns == target
    largest = tl.max(value, 0)
    power = tl.exp(value - largest)
    total = tl.sum(power, 0)
    loss = tl.log(total) + largest - tl.sum(tl.where(hit, value, 0.0), 0)
    grad = power / total - tl.where(hit, 1.0, 0.0)
    has_label = target >= 0
    tl.store(losses + row, tl.where(has_label, loss, 0.0))
    tl.store(place, tl.where(has_label, grad, 0.0), mask=inside)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See cross_entropy.cross_entropy; the gradient overwrites the logits."""
    (rows, words), block = logits.shape, triton.next_power_of_2(logits.shape[1])
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _cross_entropy_kernel[(rows,)](
        logits, targets, losses, words, WORDS=block, num_warps=max(1, min(32, block // 2048))
    )
    return losses, logits
