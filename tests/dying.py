"""Die at a chosen moment: between any two touches of a folder's files."""

import os
import signal
import sys
import threading
from pathlib import Path

WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir", "shutil.rmtree")


def die_at(moment: int, folder: Path, after: str = "") -> None:
    """From the first touch of a path with `after` in it on, SIGKILL this process at its `moment`-th touch of `folder`.

    Every touch counts, in whatever thread, just before it happens.
    """
    seen, one_by_one = {"count": 0, "armed": False}, threading.RLock()

    def hook(event, arguments):
        if event in WATCHED and arguments and str(folder) in str(arguments[0]):
            with one_by_one:
                seen["armed"] = seen["armed"] or after in str(arguments[0])
                seen["count"] += seen["armed"]
                if seen["count"] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
