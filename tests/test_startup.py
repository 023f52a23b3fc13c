"""Help and mistakes in flags, recipe and paths answer before torch and transformers are imported."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, environment

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
RECIPE = "scripts/recipes/tiny.yaml"
SHARE_OF_TORCH = 0.6  # of the time that `import torch` alone takes
# Runs a script as `python SCRIPT ARGUMENTS` does, and prints which of the slow libraries it has imported.
RUNNER = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, "scripts")
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
    code = 0
except SystemExit as end:
    code = end.code or 0
print("ended with", code, *sorted({"torch", "transformers", "peft"} & sys.modules.keys()))
"""


def ended(script: str, *arguments: str) -> tuple[str, str]:
    """(the last line: exit code and slow libraries, all that was printed)."""
    command = [sys.executable, "-c", RUNNER, f"scripts/{script}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    return done.stdout.strip().splitlines()[-1], done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_no_torch(script):
    last, printed = ended(script, "--help")
    assert "usage:" in printed
    assert last == "ended with 0"


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("train.py", ["nowhere.yaml"], "nowhere.yaml does not exist"),
        ("train.py", [RECIPE, "--lerning-rate", "1"], "lerning_rate is not a known key (did you mean learning_rate?)"),
        ("train.py", [RECIPE, "--learning-rate", "fast"], "'fast' is not a number"),
        ("train.py", [RECIPE, "--data", "nofile.csv"], "nofile.csv does not exist"),
        ("ask.py", ["--run", "runs/nowhere", "question"], "runs/nowhere is not a run"),
        ("ask.py", ["--run", "runs/nowhere", "--file", "questions.csv"], "--file and --out go together"),
        ("evaluate.py", ["--run", "runs/nowhere"], "runs/nowhere is not a run"),
        (
            "evaluate.py",
            ["--run", "runs/nowhere", "--batch-size", "0"],
            "error: --batch-size: 0 is not a whole number of at least 1 ",
        ),
        ("bench.py", ["--steps", "many"], "--steps: many is not a whole number of at least 1"),
        ("prepare_data.py", ["nofile.csv", "--out", "data/nowhere"], "does not exist"),
        ("report.py", ["--out", "reports/nowhere"], "error: the following arguments are required: RUN"),
        ("report.py", ["runs/nowhere", "--out", "reports/nowhere"], "does not exist"),
    ],
)
def test_a_mistake_answers_without_torch(script, arguments, sentence):
    last, printed = ended(script, *arguments)
    assert sentence in printed
    assert last == "ended with 2"


def test_help_takes_a_part_of_what_torch_takes():
    """Ratios, not seconds: a busy machine is slow with both. The best of three, as others' work only adds."""

    def seconds(*command: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(), capture_output=True, check=True)
        return time.perf_counter() - begin

    torch, answers = [], {script: [] for script in SCRIPTS}
    for _ in range(3):
        torch.append(seconds("-c", "import torch"))
        for script, taken in answers.items():
            taken.append(seconds(str(Path("scripts") / script), "--help"))
    shares = {script: min(taken) / min(torch) for script, taken in answers.items()}
    print({script: f"{share:.2f}" for script, share in shares.items()}, f"torch {min(torch):.2f} s", os.getloadavg())
    assert max(shares.values()) < SHARE_OF_TORCH, shares
