"""Generated bad files, recipes and flags: each is read or refused in one sentence, in time, in bounded memory."""

import json
import subprocess
import sys

import pytest
from command_line import ROOT, environment


def try_inputs(first: int, count: int) -> dict:
    """The outcome of hostile inputs by number, tried in a process of bounded memory."""
    command = [sys.executable, "tests/try_hostile_inputs.py", str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(told: dict, count: int) -> None:
    assert told["failures"] == []
    assert told["inputs"] == count
    assert min(told["accepted"], told["refused"]) > count // 10, "inputs that are all good or all bad test little"
    assert told["slowest"][0] < 10
    print(f"{count:,} inputs: {told['accepted']:,} read, {told['refused']:,} refused, slowest {told['slowest'][0]} s")


def test_200_hostile_inputs():
    check(try_inputs(0, 200), 200)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_2000_hostile_inputs():
    check(try_inputs(1000, 2000), 2000)
