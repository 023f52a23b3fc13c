"""What three measured updates change in later plans; the measurement itself is a fake here."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from command_line import run_script

from llm_qa.config.recipe import load_recipe, recipe_flags
from llm_qa.console import Failed, UserError
from llm_qa.planning.calibration import calibrate, calibrated
from llm_qa.planning.known_gpus import GPUS
from llm_qa.planning.speed import trust
from llm_qa.planning.ways import Job, all_plans, best_of

JOB = Job("EleutherAI/polyglot-ko-5.8b", GPUS["RTX 4090"], 2, 1, 476_560, 3)
ALONE = dataclasses.replace(JOB, gpus=1)


def bench(speed: float, commands: list):
    """A stand-in for subprocess.run that measures so many tokens a second."""

    def run(command):
        commands.append(command)
        with open(command[command.index("--out") + 1], "w") as out:
            out.write(json.dumps({"tokens_per_second": speed}) + "\n")
        return SimpleNamespace(returncode=0)

    return run


def test_later_plans_are_as_fast_as_measured_and_say_so(tmp_path):
    computed, commands = best_of(all_plans(ALONE)).tokens_per_second, []
    path = tmp_path / "reports" / "calibration.json"
    calibrate(JOB, path, bench(computed / 2, commands))
    gpu = calibrated(GPUS["RTX 4090"], path)
    plan = best_of(all_plans(dataclasses.replace(ALONE, gpu=gpu)))
    assert plan.tokens_per_second == pytest.approx(computed / 2, rel=1e-3)
    assert f"scaled to {computed / 2:,.0f} tok/s, measured in 3 updates of LoRA fp8 of" in trust(gpu)
    assert str(path) in trust(gpu)
    assert calibrated(GPUS["H100"], path) == GPUS["H100"]
    text = run_script("scripts/plan.py", "--pairs", "9", "--gpu", "RTX 4090", "--calibration", path).stdout
    assert f"times: {trust(gpu)}" in text


def test_the_command_is_one_that_bench_takes(tmp_path):
    calibrate(JOB, tmp_path / "kept.json", bench(1.0, commands := []))
    (command,) = commands
    flags = command[3 : command.index("--baselines")]
    assert load_recipe(command[2], recipe_flags(flags)).model == JOB.model
    done = run_script(*command[1:-2], "--row", "nothing", "--help")
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_measured_is_said(tmp_path):
    path = tmp_path / "kept.json"
    with pytest.raises(Failed, match="measured nothing"):
        calibrate(JOB, path, lambda command: SimpleNamespace(returncode=1))
    assert not path.exists()
    tiny = dataclasses.replace(JOB, gpu=dataclasses.replace(JOB.gpu, gib=2))
    with pytest.raises(UserError, match="no way to do so fits RTX 4090: name a smaller --model"):
        calibrate(tiny, path)
    path.write_text('{"gpu": "RTX 4090"}')
    with pytest.raises(UserError, match="is not what --calibrate writes"):
        calibrated(JOB.gpu, path)


def test_without_a_gpu_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
    done = run_script("scripts/plan.py", "--calibrate")
    assert done.returncode == 2
    assert "on the GPU of this machine, but nvidia-smi shows none" in done.stderr
    assert done.stderr.count("\n") == 1
