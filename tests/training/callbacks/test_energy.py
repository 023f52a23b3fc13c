"""Energy: the library's calls by a stand-in for it, and counting over a stop. No GPU is needed."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from llm_qa.training.callbacks.energy import EnergyUsed, _millijoules, energy_joules


class Nvml:
    """Three calls of NVML: 0 is success. Handles are 1-based places in `counters`."""

    def __init__(self, counters, *, broken=""):
        self.counters, self.broken = counters, broken

    def nvmlInit_v2(self):
        return int(self.broken == "init")

    def nvmlDeviceGetHandleByUUID(self, uuid, device):
        if self.broken == "handle" or uuid not in self.counters:
            return 6
        device._obj.value = 1 + list(self.counters).index(uuid)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device, counted):
        if self.broken == "energy":
            return 3
        counted._obj.value = list(self.counters.values())[device.value - 1]
        return 0


def test_the_counters_of_all_gpus_are_summed_or_nothing_is_told():
    counters = {b"GPU-a": 1500, b"GPU-b": 2**40}
    assert _millijoules(Nvml(counters), ["b", "GPU-a"]) == 2**40 + 1500
    assert _millijoules(Nvml(counters), ["a", "other"]) is None
    for broken in ("init", "handle", "energy"):
        assert _millijoules(Nvml(counters, broken=broken), ["a"]) is None


def test_without_gpus_or_with_those_of_other_machines_it_is_not_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert energy_joules() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid="x"))
    monkeypatch.setattr("llm_qa.training.callbacks.energy.LIBRARY", "libnowhere.so")
    assert energy_joules() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert energy_joules() is None


@pytest.fixture
def begun():
    """A callback at a training's first step, or at `step` with what a checkpoint holds."""

    def begin(readings, step=0, saved=None):
        callback = EnergyUsed(lambda: readings.pop(0))
        state = TrainerState()
        state.global_step, state.stateful_callbacks = step, {"EnergyUsed": saved} if saved else {}
        callback.on_train_begin(None, state, TrainerControl())
        return callback

    return begin


def test_joules_go_on_over_a_stop(begun):
    first = begun([90.0, 100.0, 130.0])
    saved = first.state()
    assert saved["attributes"]["joules_before"] == 30.0
    assert begun([0.0, 5.0, 12.0], step=3, saved=saved).joules() == 37.0


def test_a_part_that_was_not_counted_makes_the_whole_unknown(begun):
    assert begun([1.0, 1.0, 9.0], step=3).joules() is None
    assert begun([None, None, None]).joules() is None
    unknown = {"attributes": {"joules_before": None}}
    assert begun([1.0, 1.0, 9.0], step=3, saved=unknown).joules() is None
