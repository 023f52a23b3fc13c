"""Energy of a training by NVML's own counter, which Volta and newer GPUs keep; through ctypes, so without a package.

What cannot be counted whole is None, never a part: no such GPU or driver, MIG, GPUs of other machines, an earlier part
of the run without a count.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

LIBRARY = "libnvidia-ml.so.1"


def energy_joules() -> float | None:
    """What the GPUs of this launch have used since their driver was loaded, in joules; None where not all tell.

    A launch of n processes uses the first n visible GPUs, as `accelerate launch` gives them out.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", "1")) != processes:
        return None
    uuids = [str(torch.cuda.get_device_properties(i).uuid) for i in range(processes)]
    try:
        counted = _millijoules(ctypes.CDLL(LIBRARY), uuids)
    except (OSError, AttributeError):  # no library, or one without the function
        return None
    return None if counted is None else counted / 1000


def _millijoules(nvml, uuids: list[str]) -> int | None:
    """Sum of nvmlDeviceGetTotalEnergyConsumption; every function of NVML returns 0 for success."""
    if nvml.nvmlInit_v2():
        return None
    total = 0
    for uuid in uuids:
        device, counted = ctypes.c_void_p(), ctypes.c_ulonglong()
        name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        if nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(device)):
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(counted)):
            return None
        total += counted.value
    return total


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
        if now is None or self.started is None or self.before is None:
            return None
        return round(self.before + now - self.started, 1)

    def on_train_begin(self, args, state, control, **kwargs):
        """Start to count; go on from the checkpoint's count."""
        saved = state.stateful_callbacks.get("EnergyUsed") if state.global_step else None
        self.before = saved["attributes"]["joules_before"] if saved else None if state.global_step else 0.0
        self.started = self.read()
