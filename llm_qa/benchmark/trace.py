"""Where the GPU's time of one update goes, by category of kernel."""

from __future__ import annotations

import time

import torch
from transformers import TrainerCallback

CATEGORIES = {  # of GPU kernels, by a part of their names; the first that fits counts
    "attention": ("_attend", "flex_attention", "flash", "fmha"),
    "LoRA products": ("_down_kernel", "_up_kernel", "_outer_kernel", "_add_parts_kernel"),
    "GELU, rotation, sums": ("_gelu_", "_rotate_kernel", "_apply_rotary_backward_kernel", "_residual_kernel"),
    "4-bit weights to 16 or 8 bits": ("dequantize", "kDequantize", "_nf4_to_fp8"),
    "rounding to fp8": ("_rows_to_fp8",),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitK"),
    "gathers and reductions between GPUs": ("nccl",),
    "optimizer": ("Optimizer", "multi_tensor", "foreach", "lpnorm"),
    "compiled element-wise": ("triton_",),
    "copies": ("Memcpy", "Memset"),
}


class Trace(TrainerCallback):
    """GPU time of the last update, by category of kernel, and how long the GPU waited.

    It waits for the first kernels of an update that is measured alone; in training they are queued before.
    """

    def __init__(self):
        self.profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        )
        self.rows: list[list[str]] = []
        self.milliseconds: dict[str, float] = {}  # by category, what the GPU waited included

    def on_step_end(self, args, state, control, **kwargs):
        """Start before the last update; stop after it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == state.max_steps - 1:
            self.began = time.perf_counter()
            self.profile.start()
        elif state.global_step == state.max_steps:
            wall = (time.perf_counter() - self.began) * 1e3
            self.profile.stop()
            self.rows = self.categories(wall)

    def categories(self, wall: float) -> list[list[str]]:
        """(category, ms, share, largest kernels) of the update that took `wall` ms."""
        kernels = [event for event in self.profile.key_averages() if event.self_device_time_total > 0]
        kernels = [event for event in kernels if event.self_cpu_time_total == 0 and not event.is_user_annotation]
        spent: dict[str, float] = dict.fromkeys([*CATEGORIES, "other"], 0.0)
        largest: dict[str, list[tuple[float, int, str]]] = {name: [] for name in spent}
        for event in kernels:
            fits = (name for name, parts in CATEGORIES.items() if any(part in event.key for part in parts))
            name, milliseconds = next(fits, "other"), event.self_device_time_total / 1e3
            spent[name] += milliseconds
            largest[name].append((milliseconds, event.count, event.key))
        spent["the GPU waits"] = max(0.0, wall - sum(spent.values()))
        self.milliseconds = {name: round(milliseconds, 1) for name, milliseconds in spent.items()}
        return [
            [
                name,
                f"{milliseconds:.1f}",
                f"{milliseconds / wall:.1%}",
                ", ".join(f"{key[:60]} {ms:.1f} ({n})" for ms, n, key in sorted(largest.get(name, []))[:-7:-1]),
            ]
            for name, milliseconds in sorted(spent.items(), key=lambda item: -item[1])
        ]
