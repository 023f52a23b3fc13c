"""A real disk that is full, and one that turns read-only: a small tmpfs under the run folder of a real training."""

import subprocess
import sys

import pytest
import yaml
from command_line import ROOT, environment, run_script

from llm_qa import files
from llm_qa.training.checkpoint.resume import all_checkpoints, invalid_reasons

CLOCK = ("tokens_per_second", "peak_memory_bytes", "elapsed_seconds")
WEIGHTS = "adapter/adapter_model.safetensors"
# $1 the run folder, $2 the size of its disk, $3 where to copy what is left, then the command.
ON_A_DISK = """
mkdir -p "$1" && mount -t tmpfs -o size="$2" none "$1" || exit 99
run=$1 kept=$3; shift 3
if [ -n "$READ_ONLY_AFTER" ]; then
    (until [ -e "$run/checkpoints/$READ_ONLY_AFTER" ] && mount -o remount,ro "$run" 2>/dev/null; do sleep 0.01; done) &
fi
"$@"; code=$?
if [ -n "$AGAIN" ]; then
    mount -o remount,rw "$run"; echo "--- again ---"; "$@"; code=$code$?
fi
cp -r "$run" "$kept"; echo "codes $code"
"""


def may_mount() -> bool:
    """True where this user may mount a tmpfs in a namespace of its own."""
    try:
        probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
        return subprocess.run(probe, capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not may_mount(), reason="no tmpfs may be mounted in a user namespace here")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, neox_folder):
    """(the command without --run, a finished run)."""
    folder = tmp_path_factory.mktemp("disk")
    values = {"model": str(neox_folder), "base_precision": "fp32", "max_length": 256, "pack_length": 256}
    values |= {"global_batch_size": 2, "recompute": "none", "learning_rate": 1e-3, "eval_strategy": "no"}
    values |= {"max_steps": 20, "save_steps": 5, "logging_steps": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    data = folder / "data"
    assert run_script("scripts/prepare_data.py", "--out", data).returncode == 0
    command = ["tests/patient_train.py", folder / "recipe.yaml", "--data", data]
    done = run_script(*command, "--run", folder / "run")
    assert done.returncode == 0, done.stderr
    return command, folder / "run"


def on_a_disk(command, folder, size, **env) -> tuple[str, str]:
    """Train with the run folder on a tmpfs of `size` bytes; returns (exit codes, all that was printed)."""
    run, kept = folder / "run", folder / "kept"
    script = ["unshare", "-rm", "sh", "-c", ON_A_DISK, "sh", run, str(size), kept]
    done = subprocess.run(
        [*map(str, [*script, sys.executable, *command, "--run", run])],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    printed, _, codes = done.stdout.rpartition("codes ")
    return codes.strip(), printed


def numbers(run):
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in files.read_jsonl(run / files.LOG)]


def test_a_disk_with_room_for_one_checkpoint_keeps_it_and_training_ends_where_it_would(undisturbed, tmp_path):
    command, expected = undisturbed
    one = sum(path.stat().st_size for path in (expected / "checkpoints" / "checkpoint-20").iterdir())
    codes, printed = on_a_disk(command, tmp_path, one * 7 // 4)
    kept = tmp_path / "kept"
    assert codes == "0", printed[-3000:]
    assert [path.name for path in all_checkpoints(kept / "checkpoints")] == ["checkpoint-5"]
    assert not invalid_reasons(kept / "checkpoints" / "checkpoint-5")
    assert printed.count("(No space left on device). It needs ") == 3
    assert "the next save tries again" in printed
    assert "what was trained is saved now" in printed
    assert numbers(kept) == numbers(expected)
    assert (kept / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()


def test_a_disk_that_turns_read_only_costs_a_sentence_and_the_same_command_goes_on(undisturbed, tmp_path):
    command, expected = undisturbed
    codes, printed = on_a_disk(command, tmp_path, 100_000_000, READ_ONLY_AFTER="checkpoint-5", AGAIN="1")
    kept, (first, again) = tmp_path / "kept", printed.split("--- again ---")
    assert codes == "20", printed[-3000:]
    assert "Read-only file system" in first
    assert "no checkpoint could be saved in" in first
    assert "its lines are kept in memory until it can" in first
    assert "Traceback" not in printed
    assert "going on from" in again
    assert numbers(kept) == numbers(expected)
    assert (kept / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
