"""A person's marks of answers: one JSON line a mark, appended to a file that `prepare_data.py` reads as data.

{"question", "answer", "mark": "good" or "bad", "better": a better answer or "", "model", "time"}
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_qa.console import UserError
from llm_qa.data.text import invalid_reason

GOOD, BAD = "good", "bad"
KEYS = {"question", "answer", "mark", "better"}  # by which a line is known as a mark


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Mark:
    """One mark. `answer` is the answer that was marked; `better` what it should have been; `time` is in UTC."""

    question: str
    answer: str
    mark: str
    better: str = ""
    model: str = ""
    time: str = field(default_factory=_now)

    def __post_init__(self):
        if self.mark not in (GOOD, BAD):
            raise ValueError(f"mark {self.mark!r} is not {GOOD} or {BAD}")


def is_mark(value: Any) -> bool:
    """True for the JSON object of a mark; one with only some of the keys is an ordinary record."""
    return isinstance(value, dict) and value.keys() >= KEYS


def append_mark(path: Path, mark: Mark) -> None:
    """Append a mark as one line, written at once, so that marks of several processes do not mix.

    A line that a crash left unfinished is ended first: it costs that line alone. UserError for a text that could not be
    read again as data, or where the file cannot be written.
    """
    kept = "answer" if mark.mark == GOOD else "better"  # a bad answer may end within a character, where it was cut
    for what in ("question", kept):
        if reason := invalid_reason(getattr(mark, what)):
            raise UserError(f"The {what} cannot be kept: {reason}.")
    line = (json.dumps(asdict(mark), ensure_ascii=False) + "\n").encode("utf-8")
    try:
        with open(path, "a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            if file.write(line) != len(line):
                raise OSError(0, "the disk is full")
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; name another file with --marks.") from error


def check_marks_file(path: Path) -> None:
    """UserError where marks cannot be appended to `path`, or where it holds something else."""
    if not path.exists():
        if not path.parent.is_dir():
            raise UserError(f"--marks {path} lies in a folder that does not exist: make it, or name another file.")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"--marks {path} lies in a folder that cannot be written to: name another file.")
        return
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        raise UserError(f"--marks {path} is not a file that can be written to: name another.")
    with open(path, "rb") as file:
        first = file.readline()
    try:
        known = not first.strip() or is_mark(json.loads(first))
    except ValueError:
        known = False
    if not known:
        raise UserError(f"--marks {path} holds something other than marks: name another file.")
