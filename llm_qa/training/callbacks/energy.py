"""Energy of a training by the GPUs' own counters (Volta and newer), read by nvidia-ml-py where it is installed.

The energy is None where a part of it is unknown: without the package, such a GPU or its driver, with MIG, with GPUs of
other machines, or where an earlier part of the run was not counted.
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
    """Joules that this launch's GPUs have used since their driver was loaded; None where one has no counter.

    A launch of n processes uses the first n visible GPUs, as `accelerate launch` assigns them.
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
    """Joules of a training, earlier parts of the run included; `read` is replaced in tests."""

    def __init__(self, read: Callable[[], float | None] = energy_joules):
        self.read = read
        self.before: float | None = 0.0
        self.started = read()

    def state(self) -> dict:
        """The state that Trainer saves with each checkpoint."""
        return {"args": {}, "attributes": {"joules_before": self.joules()}}

    def joules(self) -> float | None:
        """Joules used so far; None where a part of the run was not counted."""
        now = self.read()
        if now is None or self.started is None or self.before is None:
            return None
        return round(self.before + now - self.started, 1)

    def on_train_begin(self, args, state, control, **kwargs):
        """Start counting from the checkpoint's count."""
        saved = state.stateful_callbacks.get("EnergyUsed") if state.global_step else None
        self.before = saved["attributes"]["joules_before"] if saved else None if state.global_step else 0.0
        self.started = self.read()
