"""Start scripts/train.py again and again without its imports: a process that has them forks a child for each start.

    with ForkServer() as server:
        process = server.start(["scripts/recipes/tiny.yaml", "--run", ...], log)
        os.kill(process, signal.SIGKILL); code = server.wait(process)

A child runs the script's `main` as `python scripts/train.py ARGUMENTS` would.
"""

import ast
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIVES_ON = 1000  # no exit code


class ForkServer:
    """The server as its clients see it."""

    def __enter__(self):
        from command_line import environment

        env = environment(DS_ACCELERATOR="cpu")
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def ask(self, **request) -> int:
        """One request, one number."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, arguments, log: Path, *, die_at: tuple[int, Path] | None = None, **env: str) -> int:
        """Start the script; returns the id of its process. What it prints is added to `log`.

        `die_at` is (moment, folder): SIGKILL at that touch of the folder's files (dying.py).
        """
        dies = [die_at[0], str(die_at[1])] if die_at else None
        return self.ask(start=[str(argument) for argument in arguments], log=str(log), env=env, die_at=dies)

    def wait(self, process: int, seconds: float | None = None) -> int | None:
        """The exit code of a start, negative after a signal; None for one that lives on after `seconds`."""
        code = self.ask(wait=process, seconds=seconds)
        return None if code == LIVES_ON else code

    def run(self, arguments, log: Path, **more) -> int:
        """Start and wait."""
        return self.wait(self.start(arguments, log, **more))


def child(script, request: dict) -> None:
    """What a forked child does: look like a fresh start, and never come back."""
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["env"])
    sys.argv = ["scripts/train.py", *request["start"]]
    from dying import die_at
    from tqdm import tqdm

    from llm_qa.console import run_script

    tqdm.set_lock(threading.RLock())  # its own is one for all forks: who is killed with it stops the others
    if request["die_at"]:
        die_at(*request["die_at"])
    try:
        run_script(script.main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(process: int, seconds: float | None) -> int:
    """The exit code of a child of this process, or LIVES_ON."""
    if seconds is None:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return LIVES_ON


def serve() -> None:
    """Import everything, then answer requests until the client goes."""
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers
    from transformers import Trainer  # noqa: F401
    from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401

    transformers.AutoModelForCausalLM, transformers.AutoTokenizer  # noqa: B018  lazy modules
    torch.set_num_threads(1)
    train = ROOT / "scripts" / "train.py"
    for node in ast.walk(ast.parse(train.read_text(encoding="utf-8"))):  # what its functions import as well
        if isinstance(node, ast.ImportFrom) and node.module:
            importlib.import_module(node.module)
    spec = importlib.util.spec_from_file_location("train_script", train)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = wait_for(request["wait"], request["seconds"])
        else:
            answer = os.fork()
            if answer == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                child(script, request)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with contextlib.suppress(KeyboardInterrupt):
        serve()
