"""Two trainings on one run folder: the second is refused for as long as the first one lives, and no longer."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import ROOT, environment

from llm_qa.console import UserError
from llm_qa.training.lock import hold_lock, lock_file

HOLD = (
    "import sys, time; from llm_qa.training.lock import hold_lock; hold_lock(sys.argv[1]); print('held', flush=True); "
)
FORK = "import os; os.fork(); "  # a data loader's worker, which may outlive its parent for a moment


@pytest.mark.parametrize("child", ["", FORK])
def test_the_second_is_refused_with_the_holder_named_until_kill_9(tmp_path, child):
    run = tmp_path / "run"
    command = [sys.executable, "-c", f"{HOLD}{child}time.sleep(60)", str(run)]
    holder = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"is being trained by process {holder.pid} on .* name another --run"):
            hold_lock(run, patience_seconds=0.3)
        hold_lock(tmp_path / "other", patience_seconds=0)
        holder.kill()
        holder.wait()
        hold_lock(run, patience_seconds=0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)


def test_a_launch_that_was_just_killed_is_waited_for(tmp_path, capsys):
    run = tmp_path / "run"
    command = [sys.executable, "-c", f"{HOLD}time.sleep(1)", str(run)]
    holder = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
    holder.stdout.readline()
    began = time.monotonic()
    hold_lock(run, patience_seconds=30)
    assert time.monotonic() - began < 20
    assert "is in use; waiting 30 s" in capsys.readouterr().out
    assert lock_file(run).read_text().startswith(f"process {os.getpid()} on ")
    holder.wait()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"\.run\.lock cannot be written: (File exists|Not a directory)"):
        hold_lock(tmp_path / "file" / "run")
