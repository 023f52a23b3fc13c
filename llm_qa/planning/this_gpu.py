"""The GPU of this machine: its name, peak rate and memory; useful FLOPs, for model FLOP utilisation (MFU)."""

from __future__ import annotations

import resource
import sys

import torch

from llm_qa.planning.known_gpus import find_gpu


def device_name() -> str:
    """The GPU's name, or 'CPU'."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def peak_flops(name: str) -> float | None:
    """Peak dense 16-bit FLOP/s of one GPU by its name (`gpus.py`); None where it is not known (no guess)."""
    gpu = find_gpu(name)
    return gpu.fp16 if gpu else None


def flops_per_token(linear_parameters: int, trains_all: bool) -> float:
    """Useful FLOPs a token: 2N forward + 2N for input gradients + 2N for weight gradients where all weights train.

    Recomputed activations do not count (Chowdhery et al. 2022, arXiv:2204.02311, appendix B); attention's own products
    are left out, at most a few percent for short documents.
    """
    return (6.0 if trains_all else 4.0) * linear_parameters


def free_memory_bytes() -> tuple[int, int]:
    """(free, total) bytes that this process may still use, and may use at all, of the current GPU's memory."""
    free, total = torch.cuda.mem_get_info()
    allowed = int(torch.cuda.get_per_process_memory_fraction() * total)
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return min(free, allowed - torch.cuda.memory_reserved()) + unused, allowed


def peak_memory_bytes() -> int:
    """Most memory this process has held so far: allocated on the GPU, or resident on a CPU-only machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
