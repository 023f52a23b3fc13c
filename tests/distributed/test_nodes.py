"""Two machines, another number of processes: launches of their own that train together, die and go on."""

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
from launching import LEAST_FALL, attempt, command, fall, kill, losses, start, train, training, write_recipe

pytestmark = pytest.mark.distributed
SILENCE_SECONDS = 10
LAUNCHER_SECONDS = 35  # torchrun gives a worker that does not end 30 s before SIGKILL


def free_port() -> str:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start_machines(strategy, recipe, run, *flags):
    """Two launches with a machine rank each, as two nodes would start them; returns the processes."""
    port, launched = free_port(), []
    for rank in ("0", "1"):
        nodes = ("--num_machines", "2", "--num_processes", "2", "--machine_rank", rank)
        nodes += ("--main_process_ip", "127.0.0.1", "--main_process_port", port)
        log = run.with_name(f"{run.name}-machine-{rank}.txt")
        launched.append(start(command(strategy, recipe, run, *flags, launch=nodes), log))
    return launched


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_two_machines_train_one_dies_both_start_again(strategy, tmp_path):
    recipe = write_recipe(tmp_path, "nf4", max_steps=40, save_steps=5)
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    train(strategy, recipe, undisturbed)
    assert fall(undisturbed) > LEAST_FALL

    launched = start_machines(strategy, recipe, run, "--rank-timeout", str(SILENCE_SECONDS))
    try:
        deadline = time.monotonic() + 180
        while not any((run / "checkpoints").glob("checkpoint-*/trainer_state.json")):
            assert time.monotonic() < deadline, (tmp_path / "run-machine-0.txt").read_text()[-3000:]
            time.sleep(0.05)
        kill(launched[1])  # the second machine is gone, with all its processes
        assert launched[0].wait(timeout=SILENCE_SECONDS + LAUNCHER_SECONDS + 60) != 0, "the first ends by itself"
    finally:
        for launch in launched:
            kill(launch)
    assert not (run / "adapter").exists()

    again = start_machines(strategy, recipe, run)
    try:
        codes = [process.wait(timeout=240) for process in again]
    finally:
        for launch in again:
            kill(launch)
    printed = (tmp_path / "run-machine-0.txt").read_text(encoding="utf-8")
    assert codes == [0, 0], printed[-4000:]
    assert "going on from" in printed
    assert "on 2 machines" in printed
    assert losses(run) == losses(undisturbed)
    final = "adapter/adapter_model.safetensors"
    assert (run / final).read_bytes() == (undisturbed / final).read_bytes()


@pytest.mark.parametrize(
    ("kind", "strategy", "others"),
    [
        ("lora_fp32", "ddp", (1, 4)),
        ("lora_fp32", "zero2", (1, 4)),
        ("lora_fp32", "zero3", (1, 4)),
        ("nf4", "zero2", (1,)),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(kind, strategy, others, tmp_path):
    recipe = write_recipe(tmp_path, kind)
    run = tmp_path / "two"
    train(strategy, recipe, run)
    for processes in others:
        other = tmp_path / f"on-{processes}"
        shutil.copytree(run, other)
        for path in ("checkpoints/checkpoint-4", "adapter"):
            shutil.rmtree(other / path)
        (other / "training.json").unlink()
        config = "single_gpu" if (strategy, processes) == ("ddp", 1) else strategy
        allowed = ("--allow-change", "processes")
        printed = train(config, recipe, other, *allowed, launch=("--num_processes", str(processes)))
        assert "was made on 2 processes and goes on with" in printed
        assert training(other)["engine"]["processes"] == processes
        assert losses(other) == pytest.approx(losses(run), rel=1e-5)


def test_each_group_of_parameters_counts_its_own_updates_on_another_number_of_processes(tmp_path):
    """DeepSpeed loads one count for all of them (universal_steps.py); with its own settings this base is one group."""
    config = json.loads(Path("ds_configs/zero3.json").read_text())
    config["zero_optimization"]["sub_group_size"] = 1000
    (tmp_path / "groups.json").write_text(json.dumps(config))
    groups = ("--deepspeed_config_file", str(tmp_path / "groups.json"))
    recipe = write_recipe(tmp_path, "lora_fp32")
    run, other = tmp_path / "two", tmp_path / "one"
    train("zero3", recipe, run, launch=groups)
    shutil.copytree(run, other)
    for path in ("checkpoints/checkpoint-4", "adapter"):
        shutil.rmtree(other / path)
    (other / "training.json").unlink()
    train("zero3", recipe, other, "--allow-change", "processes", launch=(*groups, "--num_processes", "1"))
    assert losses(other) == pytest.approx(losses(run), rel=1e-5)


def test_another_engine_than_the_checkpoint_is_refused(tmp_path):
    recipe = write_recipe(tmp_path, "lora_fp32")
    run = tmp_path / "run"
    train("ddp", recipe, run)
    shutil.rmtree(run / "adapter")
    (run / "training.json").unlink()
    printed, code = attempt("zero2", recipe, run)
    assert code != 0
    assert "was made by one process or DDP and this is ZeRO-2, 2 processes" in printed
