"""One rank of two dies, stops answering or gets a signal: the others end within a stated time, and nothing is lost."""

import os
import signal
import time

import psutil
import pytest
from launching import LEAST_FALL, command, fall, kill, losses, start, train, training, write_recipe

pytestmark = pytest.mark.distributed
SILENCE_SECONDS = 10
LAUNCHER_SECONDS = 35  # torchrun gives a worker that does not end 30 s before SIGKILL
FINAL = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """strategy -> (recipe, a finished run), trained once."""
    folder, done = tmp_path_factory.mktemp("undisturbed"), {}

    def run(strategy):
        recipe = write_recipe(folder, "nf4", max_steps=40, save_steps=10, lora_dropout=0.05, eval_strategy="no")
        if strategy not in done:
            train(strategy, recipe, folder / strategy)
            done[strategy] = folder / strategy
        return recipe, done[strategy]

    return run


def disturb(strategy, recipe, run, number):
    """Start a run, send `number` to rank 1 after the first checkpoint; returns (what was printed, seconds, code)."""
    log = run.with_suffix(".txt")
    launch = start(command(strategy, recipe, run, "--rank-timeout", str(SILENCE_SECONDS)), log)
    try:
        deadline = time.monotonic() + 180
        while not any((run / "checkpoints").glob("checkpoint-*/manifest.json")):
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            assert launch.poll() is None, log.read_text()[-3000:]
            time.sleep(0.02)
        workers = psutil.Process(launch.pid).children(recursive=True)
        (second,) = [p for p in workers if p.environ().get("RANK") == "1" and "train.py" in " ".join(p.cmdline())]
        os.kill(second.pid, number)
        began = time.monotonic()
        code = launch.wait(timeout=SILENCE_SECONDS + LAUNCHER_SECONDS + 60)
        seconds = time.monotonic() - began
    finally:
        kill(launch)
    return log.read_text(encoding="utf-8"), seconds, code


def goes_on_to_the_same_end(strategy, recipe, run, expected):
    printed = train(strategy, recipe, run)
    assert "going on from" in printed
    assert losses(run) == losses(expected)
    assert (run / FINAL).read_bytes() == (expected / FINAL).read_bytes()
    assert training(run)["tokens"] == training(expected)["tokens"]


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_forty_steps_teach_something(strategy, undisturbed):
    """A run that learns nothing would come to the same end whatever was lost."""
    _, run = undisturbed(strategy)
    assert fall(run) > LEAST_FALL


def test_a_rank_that_dies_is_named_and_the_others_end(undisturbed, tmp_path):
    recipe, expected = undisturbed("ddp")
    printed, seconds, code = disturb("ddp", recipe, tmp_path / "run", signal.SIGKILL)
    assert code != 0
    assert seconds < LAUNCHER_SECONDS
    assert "rank      : 1" in printed
    assert "Signal 9 (SIGKILL)" in printed
    goes_on_to_the_same_end("ddp", recipe, tmp_path / "run", expected)


def test_a_rank_that_stops_answering_is_named_and_the_others_end(undisturbed, tmp_path):
    recipe, expected = undisturbed("ddp")
    printed, seconds, code = disturb("ddp", recipe, tmp_path / "run", signal.SIGSTOP)
    assert code != 0
    assert seconds < SILENCE_SECONDS + 2 + LAUNCHER_SECONDS
    assert f"has given no sign of life for {SILENCE_SECONDS} s: all ranks end now" in printed
    assert "error: rank 1 (process " in printed
    goes_on_to_the_same_end("ddp", recipe, tmp_path / "run", expected)


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(strategy, undisturbed, tmp_path):
    recipe, expected = undisturbed(strategy)
    run = tmp_path / "run"
    printed, _, code = disturb(strategy, recipe, run, signal.SIGTERM)
    assert code != 0
    assert "a signal to another rank" in printed
    assert "everything is saved" in printed
    stopped_at = training(run)["steps"]
    assert (run / "checkpoints" / f"checkpoint-{stopped_at}" / "manifest.json").is_file()
    goes_on_to_the_same_end(strategy, recipe, run, expected)
