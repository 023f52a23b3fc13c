"""On paper: how fast ZeRO-3 trains on more GPUs, from what one GPU computes and what the links between them carry.

A pass gathers the weights twice, once for the forward and once for the backward pass, and where they train it also
sums and shares out their gradients. A layer is gathered while the one before it computes, so a pass takes the longer
of the two. The links' and the GPU's speeds are measured; accelerate_configs/README.md has the table and its commands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NVLINK = 150e9  # bytes a second that a GPU receives of a gather while it computes; two H200, NCCL without multicast
NETWORK = 50e9  # bytes a second into a node of eight GPUs: 400 Gb/s
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Work:
    """One GPU's part: FLOPs a token of the forward and backward pass (repeated products in the latter), its rate.

    `weights` and `gradients` are the bytes that a pass gathers once and shares out; `update` the seconds of an
    optimizer step on one GPU that shares its states with none, which ZeRO divides among all.
    """

    forward: float
    backward: float
    flops_a_second: float
    weights: float
    gradients: float = 0.0
    update: float = 0.0


def transfer_seconds(size: float, gpus: int) -> float:
    """Seconds until `size` bytes, shared out over `gpus`, have been gathered on each (or summed and shared out).

    In a node every GPU receives what it has not over NVLink; into a node comes once what its GPUs do not have.
    """
    nodes = math.ceil(gpus / GPUS_A_NODE)
    return max(size * (gpus - 1) / gpus / NVLINK, size * (nodes - 1) / nodes / NETWORK)


def pass_seconds(work: Work, tokens: int, gpus: int) -> float:
    """Seconds of a pass over `tokens` on each of `gpus`, in which transfers run beside products."""
    gather, scatter = transfer_seconds(work.weights, gpus), transfer_seconds(work.gradients, gpus)
    forward, backward = (tokens * flops / work.flops_a_second for flops in (work.forward, work.backward))
    return max(forward, gather) + max(backward, gather + scatter)


def tokens_per_second(work: Work, tokens: int, gpus: int, passes: int = 1) -> float:
    """Tokens a second and GPU in updates of `passes` passes over `tokens` each."""
    return passes * tokens / (passes * pass_seconds(work, tokens, gpus) + work.update / gpus)


def hidden_from(work: Work, gpus: int) -> int:
    """The fewest tokens a pass on each GPU whose products take as long as its transfers, both ways."""
    gather, scatter = transfer_seconds(work.weights, gpus), transfer_seconds(work.gradients, gpus)
    return math.ceil(work.flops_a_second * max(gather / work.forward, (gather + scatter) / work.backward))
