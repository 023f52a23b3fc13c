"""The rate that this device reaches on one large matrix product: what utilisation is measured against."""

from __future__ import annotations

import time

import torch

SIDE = {"cuda": 8192, "cpu": 1024}
TIMES, WARMUP = 30, 10


def matrix_rate() -> float:
    """FLOP/s of a square product of random numbers: bf16 on a GPU, fp32 on a CPU. Zeros would run faster."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    side = SIDE[kind]
    a, b = (torch.randn(side, side, device=kind, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def seconds(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            torch.mm(a, b, out=out)
        if kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(WARMUP)
    return 2 * side**3 * TIMES / seconds(TIMES)
