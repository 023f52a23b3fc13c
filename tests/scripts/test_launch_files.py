"""How training is launched: accelerate configs, make's targets and the SLURM script, read by accelerate itself."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).parents[2]
CONFIGS = {  # file -> (distributed type, ZeRO's JSON, machines, processes)
    "single_gpu": ("NO", None, 1, 1),
    "ddp": ("MULTI_GPU", None, 1, 2),
    "zero2": ("DEEPSPEED", "ds_configs/zero2.json", 1, 2),
    "zero3": ("DEEPSPEED", "ds_configs/zero3.json", 1, 2),
    "zero3_offload": ("DEEPSPEED", "ds_configs/zero3_offload.json", 1, 2),
    "zero3_optimizer_offload": ("DEEPSPEED", "ds_configs/zero3_optimizer_offload.json", 1, 2),
    "zero3_two_nodes": ("DEEPSPEED", "ds_configs/zero3.json", 2, 16),
}
ZERO = {"zero2": 2, "zero3": 3, "zero3_offload": 3, "zero3_optimizer_offload": 3}
AUTO = {  # what Trainer fills in, so that it is said once, in the recipe
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("bf16.enabled", "fp16.enabled"),
}
SHARES_WEIGHTS_AUTO = {"zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size"}


def test_every_accelerate_config_is_known():
    assert {path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml")} == set(CONFIGS)
    assert {path.stem for path in (ROOT / "ds_configs").iterdir()} == set(ZERO)


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_config(name):
    kind, zero, machines, processes = CONFIGS[name]
    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert str(config.distributed_type).rpartition(".")[2] == kind
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, processes, None)
    said = config.deepspeed_config
    assert said.get("deepspeed_config_file") == zero
    if zero:
        assert (ROOT / zero).is_file()
        assert said["zero3_init_flag"] == ("zero3" in zero)
        assert set(said) == {"deepspeed_config_file", "deepspeed_multinode_launcher", "zero3_init_flag"}


@pytest.mark.parametrize("name", ZERO)
def test_deepspeed_is_told_nothing_that_the_recipe_says(name):
    config = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text(encoding="utf-8"))
    found = {key: value for key, value in config.items() if not isinstance(value, dict)}
    inner = {f"{k}.{i}": v for k, value in config.items() if isinstance(value, dict) for i, v in value.items()}
    auto = {key for key, value in {**found, **inner}.items() if value == "auto"}
    assert auto == AUTO | (SHARES_WEIGHTS_AUTO if ZERO[name] == 3 else set())
    assert inner["zero_optimization.stage"] == ZERO[name]
    assert not {"optimizer", "scheduler", "steps_per_print"} & set(config)


def parsed(words: list[str]):
    """accelerate's reading of `accelerate launch ...`; an argument that it does not know ends the test."""
    assert words[words.index("launch") - 1].endswith("accelerate")
    return launch_command_parser().parse_args(words[words.index("launch") + 1 :])


@pytest.mark.parametrize("target", ["ddp", "zero2", "zero3", "zero3-offload", "zero3-optimizer-offload"])
def test_make_starts_one_of_two_machines(target):
    several = ("NUM_GPUS=8", "NUM_MACHINES=2", "MACHINE_RANK=1", "MAIN_IP=10.0.0.1", "MAIN_PORT=1234")
    what = ("RECIPE=scripts/recipes/lora_12.8b.yaml", "DATA=d", "RUN=r", "ARGS=--seed 7")
    make = ["make", "-n", "-o", ".venv/installed", f"train-{target}", *several, *what]
    outside = {
        key: value for key, value in os.environ.items() if not key.startswith("MAKE")
    }  # `make test` is a make too
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True, env=outside)
    planned = done.stdout.splitlines()[-1]
    words = shlex.split(subprocess.check_output(["bash", "-c", f"echo {planned}"], text=True))
    said = parsed(words)
    assert said.config_file == f"accelerate_configs/{target.replace('-', '_')}.yaml"
    assert (said.num_processes, said.num_machines, said.machine_rank) == (16, 2, 1)
    assert (said.main_process_ip, said.main_process_port) == ("10.0.0.1", 1234)
    assert said.training_script == "scripts/train.py"
    flags = ["scripts/recipes/lora_12.8b.yaml", "--data", "d", "--run", "r", "--seed", "7"]
    assert said.training_script_args == flags


SCONTROL = r"""#!/bin/bash
[ "$*" = "show hostnames node-[a-b]" ] && printf 'node-a\nnode-b\n'
"""
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
for node in 0 1; do SLURM_NODEID=$node "$@" || exit; done
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def slurm(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    """Run the SLURM script with an srun that starts two nodes and an accelerate that notes its words."""
    executable(folder / "bin/scontrol", SCONTROL)
    executable(folder / "bin/srun", SRUN)
    note = "import json, os, sys; print(json.dumps([sys.argv, os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT']]))"
    executable(folder / ".venv/bin/accelerate", f"#!{sys.executable}\n{note}\n")
    job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "1234567", **more}
    environment = {**os.environ, **job, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "scripts/slurm_train.sh"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_slurm_script_starts_every_node_with_what_accelerate_understands(tmp_path):
    subprocess.run(["bash", "-n", "scripts/slurm_train.sh"], cwd=ROOT, check=True)
    flags = ["scripts/recipes/lora_12.8b.yaml", "--data", "my data", "--run", "runs/x"]
    done = slurm(tmp_path, "accelerate_configs/zero3.yaml", *flags, SLURM_GPUS_ON_NODE="8")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    for rank, (words, seconds) in enumerate(lines):
        said = parsed(words)
        assert said.config_file == "accelerate_configs/zero3.yaml"
        assert (said.num_processes, said.num_machines, said.machine_rank) == (16, 2, rank)
        assert (said.main_process_ip, said.main_process_port) == ("node-a", 24567)
        assert said.training_script == "scripts/train.py"
        assert said.training_script_args == flags, "a name with a space stays one"
        assert 30 < int(seconds) < 300, "between torchrun's own and the end of the job"


def test_the_slurm_script_says_what_is_missing(tmp_path):
    assert "SLURM gave no GPUs" in slurm(tmp_path, "accelerate_configs/zero3.yaml", SLURM_GPUS_ON_NODE="").stderr
    assert "accelerate config, such as" in slurm(tmp_path).stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    subprocess.run(["shellcheck", "scripts/slurm_train.sh"], cwd=ROOT, check=True)
