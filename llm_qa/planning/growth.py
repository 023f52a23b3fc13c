"""Estimates how fast ZeRO-3 trains on more GPUs, from one GPU's compute rate and the bandwidth between GPUs.

A pass gathers the weights twice, once for the forward and once for the backward pass, and reduce-scatters the gradients
of trained weights. A layer is gathered while the one before it computes, so a pass takes the longer of the two times.
The bandwidth and the compute rate are measured; accelerate_configs/README.md has the table and its commands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Calibrated on two H200 and on two and four H100, NCCL without multicast (2026-11-26; accelerate_configs/README.md):
# bytes per second that a GPU receives while it computes, and the share of that time by which matrix products are slowed
# down, because communication kernels use the GPU's processors too.
NVLINK, SLOWED = 120e9, 0.8
NETWORK = 50e9  # bytes per second into a node: 400 Gb/s
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Work:
    """The work of one GPU: FLOPs per token of forward and backward pass (recomputation included), and its rate.

    `weights` are the bytes of each of a pass's two gathers, `gradients` those that are reduce-scattered; `update` is
    the seconds of an optimizer step on one GPU, which ZeRO divides among all.
    """

    forward: float
    backward: float
    flops_a_second: float
    weights: float
    gradients: float = 0.0
    update: float = 0.0


def nvlink_seconds(size: float, gpus: int) -> float:
    """Seconds in which every GPU receives the missing parts of `size` bytes that are partitioned over `gpus`."""
    return size * (gpus - 1) / gpus / NVLINK


def transfer_seconds(size: float, gpus: int) -> float:
    """Seconds until `size` bytes have been gathered on each of `gpus`, or reduce-scattered.

    Between nodes, the bytes that a node's GPUs lack enter the node once.
    """
    nodes = math.ceil(gpus / GPUS_A_NODE)
    return max(nvlink_seconds(size, gpus), size * (nodes - 1) / nodes / NETWORK)


def pass_seconds(work: Work, tokens: int, gpus: int) -> float:
    """Seconds of a pass over `tokens` on each of `gpus`, with transfers overlapping computation."""
    gather, scatter = transfer_seconds(work.weights, gpus), transfer_seconds(work.gradients, gpus)
    forward, backward = (tokens * flops / work.flops_a_second for flops in (work.forward, work.backward))
    slowed = SLOWED * nvlink_seconds(2 * work.weights + work.gradients, gpus)
    return max(forward, gather) + max(backward, gather + scatter) + slowed


def tokens_per_second(work: Work, tokens: int, gpus: int, passes: int = 1) -> float:
    """Tokens per second and GPU in updates of `passes` passes over `tokens` each."""
    return passes * tokens / (passes * pass_seconds(work, tokens, gpus) + work.update / gpus)


def hidden_from(work: Work, gpus: int) -> int:
    """The fewest tokens per pass and GPU with which computation hides the transfers of forward and backward pass."""
    gather, scatter = transfer_seconds(work.weights, gpus), transfer_seconds(work.gradients, gpus)
    return math.ceil(work.flops_a_second * max(gather / work.forward, (gather + scatter) / work.backward))
