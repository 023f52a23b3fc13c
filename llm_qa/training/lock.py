"""One training at a time per run folder: a file lock that the system releases when its process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from pathlib import Path
from typing import IO

from llm_qa.console import UserError, say
from llm_qa.language import tr

PATIENCE_SECONDS = 10.0  # the workers of a launch that was just killed take a moment to end
HOLDER = re.compile(r"process (?P<process>\d+) on (?P<host>.*)\n")  # what the lock file holds
_held: dict[Path, IO[str]] = {}


def lock_file(run_dir: str | Path) -> Path:
    """The lock file, beside the run folder: `--resume never` renames the folder, and it may be deleted."""
    run_dir = Path(run_dir).resolve()
    return run_dir.with_name(f".{run_dir.name}.lock")


def hold_lock(run_dir: str | Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Take the run's lock until this process ends; where another process holds it, UserError names that process.

    `fcntl.lockf` is released by the kernel when its process ends, also by SIGKILL, is not inherited by children and
    works on NFS. Where the file system has no locks, a line says so and training goes on.
    """
    path = lock_file(run_dir)
    deadline = time.monotonic() + patience_seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  stays open while the process lives
    except OSError as error:
        raise UserError(
            tr("--run {run_dir}: {path} cannot be written: {error}.", run_dir=run_dir, path=path, error=error.strerror)
        ) from error
    waiting = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                say(
                    tr(
                        "{folder} has no file locks ({error}): start no second training on {run_dir}",
                        folder=path.parent,
                        error=error.strerror,
                        run_dir=run_dir,
                    )
                )
                break
            if time.monotonic() >= deadline:
                file.seek(0)
                held = HOLDER.fullmatch(file.read(200))
                file.close()
                raise UserError(
                    tr(
                        "--run {run_dir} is being trained by {holder}: wait for it, end it, or name another --run.",
                        run_dir=run_dir,
                        holder=tr("process {process} on {host}", **held.groupdict()) if held else tr("another process"),
                    )
                ) from None
            if not waiting:
                say(
                    tr(
                        "{run_dir} is in use; waiting {seconds:.0f} s for that to end",
                        run_dir=run_dir,
                        seconds=patience_seconds,
                    )
                )
                waiting = True
            time.sleep(0.2)
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[path] = file
