"""Long work in batches that survives a kill and is divided among processes.

The batches depend only on the items. Process r of n does every n-th batch; each finished batch is one line of a .part
file, so that a killed evaluation continues where it stopped, with any number of processes.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_qa.console import UserError, progress, say
from llm_qa.distributed import rank, wait_for_all, world_size


@dataclass(frozen=True)
class Work:
    """The result of all batches: a value for each item, in the items' order, and the seconds it took.

    The seconds are summed over batches, those before a kill included, and divided by the number of processes.
    """

    values: list[Any]
    seconds: float


def in_batches(
    items: Sequence[Any],
    sizes: Sequence[int],
    work: Callable[[int, list[Any]], list[Any]],
    *,
    batch_size: int,
    part: Path,
    key: str,
    what: str,
) -> Work:
    """Do `work` on batches of items of similar size, longest first; it returns one JSON value per item.

    Finished batches are appended to `part`.<rank>.part with the `key` of the work; files with another key (other data,
    settings or weights) are deleted with a message. Call `delete_partial_results` when the results are safe.
    Raises UserError when a batch is missing after all processes are done: then they do not share the folder.
    """
    order = sorted(range(len(items)), key=lambda i: (-sizes[i], i))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if rank() == 0:
        _drop_others(part, key)
    wait_for_all()
    done = _read_parts(part, key)
    finished = sum(len(batches[number]) for number in done)
    wait_for_all()  # no process writes before all have read
    if finished:
        say(f"{what}: going on after {finished:,} of {len(items):,}")
    mine = [number for number in range(rank(), len(batches), world_size()) if number not in done]
    bar = progress(total=len(items), what=what, unit="items", resume_at=finished)
    with bar, _PartFile(part, key) as out:
        for number in mine:
            started = time.perf_counter()
            results = work(number, [items[i] for i in batches[number]])
            out.append({"batch": number, "values": results, "seconds": time.perf_counter() - started})
            bar.update(min(len(batches[number]) * world_size(), bar.total - bar.n))  # the others keep pace
    wait_for_all()
    done = _read_parts(part, key)
    if missing := len(batches) - len(done):
        raise UserError(
            f"{missing:,} of {len(batches):,} batches of {what} are not in {part.parent}: put --run on a disk that all "
            "processes share."
        )
    values: list[Any] = [None] * len(items)
    for number, batch in enumerate(batches):
        for i, value in zip(batch, done[number]["values"], strict=True):
            values[i] = value
    return Work(values, sum(line["seconds"] for line in done.values()) / world_size())


def delete_partial_results(part: Path) -> None:
    """Remove the .part files of work whose results are written elsewhere; all processes must be done reading them."""
    wait_for_all()
    if rank() == 0:
        for path in _part_files(part):
            path.unlink()
    wait_for_all()


class _PartFile:
    """Appends finished batches, each flushed to the disk before the next begins."""

    def __init__(self, part: Path, key: str):
        self.path, self.key = part.with_name(f"{part.name}.{rank()}.part"), key

    def __enter__(self) -> _PartFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
            self.file = open(self.path, "a", encoding="utf-8", newline="\n")
            if torn:  # the last line was cut off by a kill: start a new line
                self.file.write("\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from error
        return self

    def append(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps({"key": self.key, **line}) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __exit__(self, *error) -> None:
        self.file.close()


def _part_files(part: Path) -> list[Path]:
    return sorted(part.parent.glob(f"{glob.escape(part.name)}.*.part"))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a part file, without a last one that was cut off by a kill."""
    lines = []
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"key", "batch", "values", "seconds"} <= line.keys():
            lines.append(line)
    return lines


def _read_parts(part: Path, key: str) -> dict[int, dict[str, Any]]:
    found = (line for path in _part_files(part) for line in _lines(path))
    return {line["batch"]: line for line in found if line["key"] == key}


def _drop_others(part: Path, key: str) -> None:
    for path in _part_files(part):
        if any(line["key"] != key for line in _lines(path)):
            say(f"{path} is of other data, settings or weights: it starts again")
            path.unlink()
