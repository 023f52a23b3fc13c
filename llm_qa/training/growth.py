"""On paper: how fast ZeRO-3 trains on more GPUs, from what one GPU computes and what the links between them carry.

A pass gathers the weights twice, once for the forward and once for the backward pass, and where they train it also
sums and shares out their gradients. A layer is gathered while the one before it computes, so a pass takes the longer
of the two. The links' and the GPU's speeds are measured; accelerate_configs/README.md has the table and its commands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Measured on two H200, NCCL without multicast (scripts/bench.py --trace, 2026-11-26; accelerate_configs/README.md):
# bytes a second that a GPU receives while it computes, and the share of that time by which products are slowed down, as
# both need the GPU's processors.
NVLINK, SLOWED = 120e9, 0.6
NETWORK = 50e9  # bytes a second into a node: 400 Gb/s
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Work:
    """What one GPU computes: FLOPs a token of the forward and backward pass (with what is repeated), and its rate.

    `weights` and `gradients` are the bytes that a pass gathers each time, and sums and shares out; `update` the seconds
    of an optimizer step on one GPU, which ZeRO divides among all.
    """

    forward: float
    backward: float
    flops_a_second: float
    weights: float
    gradients: float = 0.0
    update: float = 0.0


def nvlink_seconds(size: float, gpus: int) -> float:
    """Seconds in which every GPU receives what it has not of `size` bytes that are shared out over `gpus`."""
    return size * (gpus - 1) / gpus / NVLINK


def transfer_seconds(size: float, gpus: int) -> float:
    """Seconds until `size` bytes have been gathered on each of `gpus`, or summed and shared out.

    Between nodes, what the GPUs of a node do not have comes into it once.
    """
    nodes = math.ceil(gpus / GPUS_A_NODE)
    return max(nvlink_seconds(size, gpus), size * (nodes - 1) / nodes / NETWORK)


def pass_seconds(work: Work, tokens: int, gpus: int) -> float:
    """Seconds of a pass over `tokens` on each of `gpus`, in which transfers run beside products."""
    gather, scatter = transfer_seconds(work.weights, gpus), transfer_seconds(work.gradients, gpus)
    forward, backward = (tokens * flops / work.flops_a_second for flops in (work.forward, work.backward))
    slowed = SLOWED * nvlink_seconds(2 * work.weights + work.gradients, gpus)
    return max(forward, gather) + max(backward, gather + scatter) + slowed


def tokens_per_second(work: Work, tokens: int, gpus: int, passes: int = 1) -> float:
    """Tokens a second and GPU in updates of `passes` passes over `tokens` each."""
    return passes * tokens / (passes * pass_seconds(work, tokens, gpus) + work.update / gpus)


def hidden_from(work: Work, gpus: int) -> int:
    """The fewest tokens a pass on each GPU whose products take as long as its transfers, both ways."""
    gather, scatter = transfer_seconds(work.weights, gpus), transfer_seconds(work.gradients, gpus)
    return math.ceil(work.flops_a_second * max(gather / work.forward, (gather + scatter) / work.backward))
