"""Energy: nvidia-ml-py's calls with counters of our own, and counting over a stop. No GPU is needed."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from llm_qa.training.callbacks import energy
from llm_qa.training.callbacks.energy import EnergyUsed, energy_joules


@pytest.fixture
def gpus(monkeypatch):
    """Visible GPUs with the UUIDs b and GPU-a, and millijoules by UUID; the rest is nvidia-ml-py itself."""
    pynvml = pytest.importorskip("pynvml")
    counters = {"GPU-a": 1500, "GPU-b": 2**40}

    def handle(uuid):
        if uuid not in counters:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=["b", "GPU-a"][i]))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", counters.__getitem__)
    return counters


def launch(monkeypatch, processes, of_all):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("WORLD_SIZE", str(of_all))


def test_the_counters_of_the_launch_are_summed(gpus, monkeypatch):
    launch(monkeypatch, 1, 1)
    assert energy_joules() == 2**40 / 1000
    launch(monkeypatch, 2, 2)
    assert energy_joules() == (2**40 + 1500) / 1000


def test_what_is_not_known_of_all_gpus_is_not_told(gpus, monkeypatch):
    launch(monkeypatch, 2, 4)
    assert energy_joules() is None, "GPUs of another machine"
    launch(monkeypatch, 2, 2)
    del gpus["GPU-a"]
    assert energy_joules() is None, "a GPU that NVML does not know"


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetTotalEnergyConsumption"])
def test_an_error_of_the_driver_is_no_energy(gpus, monkeypatch, call):
    def fails(*arguments):
        raise energy.pynvml.NVMLError(energy.pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(energy.pynvml, call, fails)
    assert energy_joules() is None


def test_without_gpus_or_the_package_there_is_no_energy(gpus, monkeypatch):
    assert energy_joules() is not None
    monkeypatch.setattr(energy, "pynvml", None)
    assert energy_joules() is None
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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
