"""Start real training runs on several CPU processes and read what they leave behind."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import yaml
from command_line import ROOT, environment

RECIPE = {
    "model": None,  # the small base, once it is saved (conftest.py)
    "max_length": 256,
    "pack_length": 256,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "recompute": "none",
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "max_grad_norm": 0,
    "max_steps": 4,
    "logging_steps": 1,
    "save_steps": 2,
}
LORA = {"method": "lora", "lora_r": 4, "lora_alpha": 16, "lora_dropout": 0}
KINDS = {
    "nf4": {**LORA, "base_precision": "nf4"},
    "lora_fp32": {**LORA, "base_precision": "fp32"},
    "lora_bf16": {**LORA, "base_precision": "bf16", "max_steps": 2},  # slow on most CPUs
    "full": {"method": "full", "base_precision": "fp32"},
}
PROCESSES = {"single_gpu": 1, "ddp": 2, "zero2": 2, "zero3": 2, "zero3_offload": 2}


FORKED_PYTHON = str(Path(__file__).parents[1] / "forked_python.py")
FORKS: dict[str, str] = {}  # the variables that it needs (conftest.py)


def write_recipe(folder: Path, kind: str, **changes) -> Path:
    """A recipe file for one kind of training, small enough for seconds on a CPU."""
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **KINDS[kind], **changes}), encoding="utf-8")
    return path


TRAIN = "scripts/train.py"


def command(
    strategy: str,
    recipe: Path,
    run: Path,
    *flags: str,
    launch: tuple[str, ...] = (),
    script: str = TRAIN,
    python: str = sys.executable,
) -> list[str]:
    """`accelerate launch` of a recipe with a strategy, as in the README, on a port that is free."""
    start = [python, "-m", "accelerate.commands.launch", "--quiet"]
    port = () if strategy == "single_gpu" else ("--main_process_port", "0")
    config = ["--config_file", f"accelerate_configs/{strategy}.yaml", *port, *launch]
    return [*start, *config, script, str(recipe), "--run", str(run), *flags]


def start(arguments: list[str], log: Path, **more: str) -> subprocess.Popen:
    """Start a launch in its own process group; what it prints goes to `log`."""
    with open(log, "a", encoding="utf-8") as output:
        return subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(DS_ACCELERATOR="cpu", **more),
            start_new_session=True,
        )


def kill(launch: subprocess.Popen) -> None:
    """SIGKILL a launch with all its workers, which torchrun puts into sessions of their own."""
    if launch.poll() is None:
        family = [psutil.Process(launch.pid), *psutil.Process(launch.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launch.wait()


def attempt(strategy: str, recipe: Path, run: Path, *flags: str, **more) -> tuple[str, int]:
    """Let a run end by itself; returns what was printed, by earlier starts too, and the exit code.

    Launcher and ranks are forked; `more` is for `command`.
    """
    log = run.with_suffix(".txt")
    launched = start(command(strategy, recipe, run, *flags, **more, python=FORKED_PYTHON), log, **FORKS)
    try:
        code = launched.wait(timeout=300)
    finally:
        kill(launched)  # one that hangs must not slow down the tests after it
    return log.read_text(encoding="utf-8"), code


def train(strategy: str, recipe: Path, run: Path, *flags: str, **more) -> str:
    """Train to the end and return what was printed; the test fails with that text if the run does."""
    printed, code = attempt(strategy, recipe, run, *flags, **more)
    assert code == 0, printed[-4000:]
    return printed


def losses(run: Path) -> list[float]:
    """The training losses of a run, step by step."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in sorted(lines, key=lambda line: line["step"]) if "loss" in line]


LEAST_FALL = 0.2  # nats a token: what a long run must learn, of some 7 that it starts with


def fall(run: Path) -> float:
    """By how much a long run's last five losses are below its first five, in the mean."""
    every = losses(run)
    assert len(every) > 30
    return (sum(every[:5]) - sum(every[-5:])) / 5


def validation_loss(run: Path) -> float:
    """The last validation loss of a run: what the live model scored."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return next(line["validation_loss"] for line in reversed(lines) if "validation_loss" in line)


def training(run: Path) -> dict:
    """A run's training.json."""
    return json.loads((run / "training.json").read_text(encoding="utf-8"))
