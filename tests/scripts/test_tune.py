"""tune.py: mistakes are refused at once, a real search through the command line, and going on after a signal."""

import signal
import subprocess
import sys
import time

import pytest
from command_line import ROOT, environment, run_script

from llm_qa import files

SMALL = "base_precision: fp32\nlora_r: 2\nmax_length: 128\npack_length: 128\nlearning_rate: 1.0e-3\nlogging_steps: 1\n"


@pytest.fixture
def recipe(tmp_path, neox_folder):
    """A recipe for the small model."""
    files.write_text(tmp_path / "small.yaml", f"model: {neox_folder}\n{SMALL}")
    return tmp_path / "small.yaml"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rate", "1e-3"], "--learning-rate is what the search decides: give the values to try"),
        (["--keep", "last"], "--keep is what the search decides: each trial keeps its best weights"),
        (["--epochs", "2", "1"], "--epochs 2 1: every round needs more than the last"),
        (["--learning-rates", "0"], "0 is not a number above 0"),
        (["--max-steps", "3"], "leave out --max-steps"),
        (["--lora-rank", "3"], "lora_rank is not a known key"),
        (["--data", "none.csv"], "none.csv does not exist"),
        (["--config-file", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(recipe, flags, message):
    out = recipe.with_name("out")
    done = run_script("scripts/tune.py", recipe, "--out", out, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_real_search_its_table_and_the_same_command_again(recipe, prepared):
    out = recipe.with_name("out")
    command = ["scripts/tune.py", recipe, "--data", prepared, "--out", out, "--learning-rates", "1e-3", "--epochs"]
    done = run_script(*command, "1", "2", "--lora-alpha", "4")
    assert done.returncode == 0, done.stderr + done.stdout
    stored = files.read_json(out / "tuning.json")
    assert [row["epochs"] for row in stored["trials"]] == [1.0, 2.0]
    best = out / stored["best"]
    assert (best / files.ADAPTER / "adapter_model.safetensors").is_file()
    assert len(list(out.glob("*/adapter"))) == 1
    assert "lora_alpha: 4" in files.read_text(best / files.RECIPE)
    lowest = min(row["validation_loss"] for row in stored["trials"])
    assert files.read_json(best / files.TRAINING)["kept"]["validation_loss"] == lowest
    assert stored["command"].startswith("accelerate launch --quiet --config_file ")
    assert "--num-train-epochs" in stored["command"]
    table, shown = files.read_text(out / "tuning.txt").split("\n\n")
    assert table in done.stdout
    assert shown.strip() == stored["command"]
    again = run_script(*command, "1", "2", "--lora-alpha", "4")
    assert again.returncode == 0
    assert "trial 1" not in again.stdout
    assert table in again.stdout
    assert files.read_json(out / "tuning.json") == stored


@pytest.mark.slow
def test_a_signal_ends_with_75_and_the_same_command_goes_on(recipe, prepared):
    out = recipe.with_name("out")
    command = [sys.executable, "scripts/tune.py", recipe, "--data", prepared, "--out", out]
    command = [*map(str, command), "--learning-rates", "1e-3", "--epochs", "40", "--save-steps", "1000"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **streams)
    trial = out / "lr0.001-batch1-epochs40"
    deadline = time.monotonic() + 120
    while not ((trial / files.LOG).is_file() and len(files.read_jsonl(trial / files.LOG)) > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 75, said + errors
    assert "SIGTERM: stopped" in said
    assert list(trial.glob("checkpoints/checkpoint-*"))
    done = run_script(*command[1:])
    assert done.returncode == 0, done.stderr + done.stdout
    assert "going on from" in files.read_text(out / f"{trial.name}.txt")
    steps = [row["step"] for row in files.read_jsonl(trial / files.LOG) if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
