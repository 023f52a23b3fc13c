#!/usr/bin/env python3
"""Ranks without their imports: torchrun takes this file for its Python, and a process that has them forks each rank.

The imports are four fifths of what a small training on two processes costs, and the matrix makes twenty. Every rank is
still a process of its own, with torchrun's environment, and ends with this file's process: when that is killed, too.
"""

import atexit
import contextlib
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

SOCKET = "FORKED_RANKS"  # the variable that names the server's socket
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def forked_ranks(folder: Path):
    """Start the server; the variables that let a launch use it."""
    address = str(folder / "ranks")
    server = subprocess.Popen([sys.executable, __file__, "--serve", address], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"ready\n"
        yield {"PYTHON_EXEC": __file__, SOCKET: address}
    finally:
        server.terminate()  # which ends what ranks it still has
        server.wait()


def ask(arguments: list[str]) -> int:
    """Have a rank forked, pass signals on to it, and return its exit code (negative after a signal)."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        outputs = [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)]
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "outputs": outputs}
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = connection.makefile()
        rank = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(rank, number))
        return int(answers.readline())


def be_a_rank(request: dict) -> None:
    """What a forked process does: look like `python -u script ...`, and never come back."""
    for number, path in zip((1, 2), request["outputs"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.argv = [word for word in request["arguments"] if word != "-u"]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
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


def serve(address: str) -> None:
    """Import everything, then fork a rank for each connection and tell it the exit code."""
    sys.path.insert(0, str(ROOT))
    os.environ["DS_ACCELERATOR"] = "cpu"
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import transformers
    from transformers import Trainer  # noqa: F401
    from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401

    import llm_qa.training.trainer  # noqa: F401

    transformers.AutoModelForCausalLM, transformers.AutoTokenizer  # noqa: B018  lazy modules
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    ranks: dict[int, socket.socket] = {}

    def end(*_):
        for rank in ranks:
            os.kill(rank, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        for key, _ in waiting.select(0.05):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = json.loads(connection.makefile().readline() or "null")
                if request is None:  # who asked is gone already
                    continue
                rank = os.fork()
                if rank == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    be_a_rank(request)
                ranks[rank] = connection
                with contextlib.suppress(OSError):
                    connection.sendall(f"{rank}\n".encode())
                waiting.register(connection, selectors.EVENT_READ, rank)
            else:  # nobody writes a second time: the process that asked is gone
                waiting.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
        while ranks:
            rank, status = os.waitpid(-1, os.WNOHANG)
            if not rank:
                break
            connection = ranks.pop(rank)
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
