"""Signals and the wall-clock budget: a stop that all agree on, in time, with everything saved."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from command_line import ROOT, environment
from transformers import TrainerControl, TrainerState

from llm_qa.training.callbacks.stopping import StopInTime, command_started

ARGUMENTS = SimpleNamespace(device=torch.device("cpu"))
STARTED = 1_000_000.0


def state(step: int, max_steps: int = 100) -> TrainerState:
    made = TrainerState()
    made.global_step, made.max_steps = step, max_steps
    return made


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still: seconds since the start of the process."""
    now = {"seconds": 0.0}
    monkeypatch.setattr("psutil.Process.create_time", lambda self: STARTED)
    monkeypatch.setattr("llm_qa.training.callbacks.stopping.time.time", lambda: STARTED + now["seconds"])
    return now


def one_step(stop, clock, at, step=0.0, validation=0.0) -> TrainerControl:
    """A step that begins `at` seconds with what comes after it; returns what the callback wished."""
    control = TrainerControl()
    clock["seconds"] = at
    stop.on_step_begin(ARGUMENTS, state(5), control)
    clock["seconds"] += step
    stop.on_step_end(ARGUMENTS, state(5), control)
    clock["seconds"] += validation
    if validation:
        stop.on_evaluate(ARGUMENTS, state(5), control)
    return control


def test_the_budget_counts_from_the_start_of_the_process(clock):
    stop = StopInTime(max_hours=1.0)
    assert not one_step(stop, clock, 1000, step=100).should_training_stop
    assert not one_step(stop, clock, 3000, step=100).should_training_stop
    stopped = one_step(stop, clock, 3350, step=100)  # 50 s are left of the hour with two steps of 100 s kept back
    assert stopped.should_save
    assert stopped.should_training_stop
    assert stop.reason == "max_hours 1.0"
    stopped.should_evaluate = True
    stop.on_epoch_end(ARGUMENTS, state(5), stopped)
    assert not stopped.should_evaluate, "a validation pass would cost what is left of the hour"


def test_a_validation_and_a_save_must_fit_into_the_budget_too(clock):
    stop = StopInTime(max_hours=1.0, seconds_to_save=lambda: 300.0)
    assert not one_step(stop, clock, 100, step=10, validation=200).should_training_stop
    assert not one_step(stop, clock, 3060, step=10).should_training_stop  # 530 s left: 20 + 200 + 300 are kept back
    assert one_step(stop, clock, 3071, step=10).should_training_stop


def test_the_launcher_s_start_counts(monkeypatch):
    own = command_started()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command_started() <= own


def test_the_last_step_is_not_an_early_stop():
    stop = StopInTime(None)
    stop.signal = "SIGTERM"
    control = TrainerControl()
    stop.on_step_end(ARGUMENTS, state(100), control)
    assert stop.reason is None
    assert not control.should_training_stop


WAITS_IN_C = """
import ctypes, os, signal, time
from llm_qa.training.callbacks.stopping import StopInTime
stop = StopInTime(None)
stop.catch_signals()
print("ready", flush=True)
if not os.environ.get("DEAF"):
    while stop.signal is None: time.sleep(0.01)
    print("asked", stop.signal, flush=True)
end = time.monotonic() + 30
while time.monotonic() < end:
    ctypes.CDLL(None).sleep(10)  # as deaf as a collective
"""


def start(**env):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS_IN_C], cwd=ROOT, env=environment(**env), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends_at_once_even_in_a_call_that_does_not_return(number):
    process = start(DEAF="1")
    process.send_signal(number)
    assert f"{number.name}: saving after this step" in process.stdout.readline()
    time.sleep(1.2)
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number
    assert time.monotonic() - began < 1, "by itself it would end after 30 s"


def test_one_wish_passed_on_twice_is_one_and_a_lost_terminal_never_ends_at_once():
    process = start()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # Slurm tells the worker, and the launcher tells it too
    assert "saving after this step" in process.stdout.readline()
    assert process.stdout.readline() == "asked SIGTERM\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_a_worker_whose_launcher_dies_is_asked_to_save():
    launcher = "import signal, subprocess, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's would last\n"
    launcher += "subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, WAITS_IN_C],
        cwd=ROOT,
        env=environment(LOCAL_RANK="0", PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert "SIGHUP: saving after this step" in process.stdout.readline()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
