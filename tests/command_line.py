"""Run the project's scripts as a user would, and read what they print."""

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from forked_python import fork_server

ROOT = Path(__file__).parents[1]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/single_gpu.yaml"]

FORKED = ROOT / "tests" / "forked_python.py"


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a launcher's variables, on one thread, without a network."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


@cache
def forked_python() -> dict[str, str]:
    """The variables of a server that forks scripts from imports that are done, which this process starts once."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return stack.enter_context(fork_server(Path(folder)))


def terminal_lines(*arguments: str | Path, columns: int = 80, timeout: float = 300, **more: str) -> list[str]:
    """The lines that `python scripts/...` prints at a terminal of so many columns; it must succeed."""
    ours, theirs = os.openpty()
    command = [sys.executable, FORKED, *map(str, arguments)]
    variables = environment(**forked_python(), COLUMNS=str(columns), **more)
    with tempfile.TemporaryFile() as errors:
        streams = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": errors}
        process = subprocess.Popen(command, cwd=ROOT, env=variables, **streams)
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # Linux says the end of a terminal so
            while piece := os.read(ours, 65536):
                output += piece
        os.close(ours)
        errors.seek(0)
        assert process.wait(timeout) == 0, errors.read().decode()
    return output.decode().replace("\r\n", "\n").splitlines()


def run_script(*arguments: str | Path, launch: bool = False, timeout: float = 300, **more: str):
    """A finished `python scripts/...` (or `accelerate launch scripts/...`), in a process of its own."""
    start, server = ACCELERATE, {}
    if not launch and not any(name.startswith("PYTHON") for name in more):
        start, server = [sys.executable, FORKED], forked_python()
    return subprocess.run(
        [*map(str, start), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        env=environment(**server, **more),
    )
