"""What is known of GPUs: peak dense 16-bit matrix rates, for model FLOP utilisation (MFU)."""

from __future__ import annotations

import re
import resource
import sys

import torch

# Dense fp16/bf16 tensor-core peak with fp32 accumulation, FLOP/s, from the vendor's datasheets, by the card's whole
# name without vendor, memory and socket ("NVIDIA A100-SXM4-80GB" is the A100).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIE": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A100 PCIE": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
    "V100 PCIE": 112e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
# What may stand in a name beside the card's own: none of it changes the peak.
BESIDE = re.compile(r"NVIDIA|TESLA|GEFORCE|SXM\d*|\d+GB|HBM\d\w*")


def device_name() -> str:
    """The GPU's name, or 'CPU'."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def peak_flops(name: str) -> float | None:
    """Peak dense 16-bit FLOP/s of one GPU by its name; None where it is not known (no guess).

    Whole names: an "L40" is no "L4", an "RTX A1000" no "A100", a laptop's or a MIG slice's peak is not the card's.
    """
    words = [word for word in re.split(r"[\s-]+", name.upper()) if not BESIDE.fullmatch(word)]
    return PEAK_FLOPS.get(" ".join(words))


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
