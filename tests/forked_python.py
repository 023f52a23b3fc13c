#!/usr/bin/env python3
"""A Python whose imports are done: it runs a script or a module in a process forked from one that has imported all.

    forked_python.py -m accelerate.commands.launch ... scripts/train.py ...

The imports are four fifths of what a small training on two processes costs, and half of what a script costs, and the
tests start hundreds. A launcher is forked too, and takes this file for its Python, so every rank is. Each is still a
process of its own, with the environment of who asks, and ends with this file's process: when that is killed, too.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

SOCKET = "FORKED_PYTHON"  # the variable that names the server's socket
ROOT = Path(__file__).parents[1]
IMPORTED = (
    "accelerate.commands.launch",
    "bitsandbytes",
    "deepspeed",
    "peft",
    "torch.distributed.run",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "llm_qa.evaluation.evaluations",
    "llm_qa.evaluation.predict.asking",
    "llm_qa.evaluation.predict.predictions",
    "llm_qa.training.trainer",
)


@contextlib.contextmanager
def fork_server(folder: Path):
    """Start the server; the variables that this file needs as a Python."""
    address = str(folder / "ranks")
    server = subprocess.Popen([sys.executable, __file__, "--serve", address], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"ready\n"
        yield {SOCKET: address}
    finally:
        server.terminate()  # which ends what processes it still has
        server.wait()


def ask(arguments: list[str]) -> int:
    """Have a process forked, pass signals on to it, and return its exit code (negative after a signal)."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "asker": os.getpid()}
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = connection.makefile()
        process = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(process, number))
        return int(answers.readline())


def run(arguments: list[str]) -> None:
    """Do as `python ARGUMENTS`. A module is a launcher: the Python that it starts its ranks with is this file."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.executable = __file__
        sys.modules.pop(sys.argv[0], None)  # imported by the server for what it imports
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [word for word in arguments if word != "-u"]
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


def be_forked(request: dict) -> None:
    """What a forked process does: look like a fresh Python, and never come back."""
    for number, how in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_APPEND), (2, os.O_WRONLY | os.O_APPEND)):
        os.dup2(os.open(f"/proc/{request['asker']}/fd/{number}", how), number)  # a file or a pipe
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  those of the server know what it had there
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.orig_argv = [sys.executable, *request["arguments"]]  # by which a script starts itself again
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        run(request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    threading._shutdown()  # what Python does at its end: threads are waited for, exit functions called
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def import_all() -> None:
    """Import everything that a launcher or a rank will, also what it imports late."""
    sys.path.insert(0, str(ROOT))
    os.environ["DS_ACCELERATOR"] = "cpu"
    for module in IMPORTED:
        importlib.import_module(module)
    transformers = sys.modules["transformers"]
    transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.Trainer  # noqa: B018  lazy modules


def kill_family(process: int) -> None:
    """SIGKILL a forked process and what it has started."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        for one in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def serve(address: str) -> None:
    """Import everything, then fork a process for each connection and tell it the exit code."""
    import_all()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    processes: dict[int, socket.socket] = {}

    def end(*_):
        for process in processes:
            kill_family(process)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        for key, _ in waiting.select(0.05):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = json.loads(connection.makefile().readline() or "null")
                if request is None:  # who asked is gone already
                    continue
                process = os.fork()
                if process == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    be_forked(request)
                processes[process] = connection
                with contextlib.suppress(OSError):
                    connection.sendall(f"{process}\n".encode())
                waiting.register(connection, selectors.EVENT_READ, process)
            else:  # nobody writes a second time: the process that asked is gone
                waiting.unregister(key.fileobj)
                kill_family(key.data)
        while processes:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            connection = processes.pop(process)
            with contextlib.suppress(KeyError):
                waiting.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            connection.close()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    code = ask(sys.argv[1:])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
