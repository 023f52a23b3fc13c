"""Energy of a training by the GPUs' own counters (Volta and newer), read by nvidia-ml-py where it is installed.

What cannot be counted whole is None, never a part: no such package, GPU or driver, MIG, GPUs of other machines, an
earlier part of the run without a count.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

try:
    import pynvml  # of nvidia-ml-py
except ImportError:
    pynvml = None


def energy_joules() -> float | None:
    """What the GPUs of this launch have used since their driver was loaded, in joules; None where one cannot tell.

    A launch of n processes uses the first n visible GPUs, as `accelerate launch` gives them out.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if pynvml is None or not torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", "1")) != processes:
        return None
    uuids = [str(torch.cuda.get_device_properties(i).uuid) for i in range(processes)]
    try:
        pynvml.nvmlInit()
        return sum(_millijoules(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}") for uuid in uuids) / 1000
    except pynvml.NVMLError:  # no driver, no such GPU, or one without a counter
        return None


def _millijoules(uuid: str) -> int:
    return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid))


class EnergyUsed(TrainerCallback, ExportableState):
    """Joules of a training, earlier parts of the run included; `read` is `energy_joules` but for tests."""

    def __init__(self, read: Callable[[], float | None] = energy_joules):
        self.read = read
        self.before: float | None = 0.0
        self.started = read()

    def state(self) -> dict:
        """What Trainer saves with each checkpoint."""
        return {"args": {}, "attributes": {"joules_before": self.joules()}}

    def joules(self) -> float | None:
        """Used so far; None where that is not known of all of the run."""
        now = self.read()
        known = now is not None and self.started is not None and self.before is not None
        return round(self.before + now - self.started, 1) if known else None

    def on_train_begin(self, args, state, control, **kwargs):
        """Start to count; go on from the checkpoint's count."""
        saved = state.stateful_callbacks.get("EnergyUsed") if state.global_step else None
        self.before = saved["attributes"]["joules_before"] if saved else None if state.global_step else 0.0
        self.started = self.read()
