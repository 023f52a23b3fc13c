"""A checkpoint becomes one in a single rename: staged out of sight, hashed, flushed, renamed, read back, and only then
do older ones go. Functions on files alone; `trainer_hooks.py` lets Trainer use them.

A process may end between any two lines here: `clear_leftovers` tidies what it left, and what is named
`checkpoint-<step>` is whole.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from llm_qa.training.checkpoint.manifest import damage, flush, write_manifest

STAGING = ".staging"
REMOVING = ".removing-"
RESERVE = ".reserve"


class SaveError(Exception):
    """A checkpoint could not be written, or is not what was written; the older ones are untouched."""


def disk_problem(error: BaseException) -> str:
    """What a disk refused, in words; '' for an error of another kind. Libraries have errors of their own for it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    told = " ".join(str(error).split())[:200]
    rust = "(os error " in told  # tokenizers raises a plain Exception
    known = isinstance(error, SaveError) or type(error).__name__ == "SafetensorError"
    return told if known or rust or "PytorchStreamWriter" in told else ""


def clear_leftovers(checkpoints: Path) -> None:
    """Remove what a save that never finished left behind."""
    for path in [checkpoints / STAGING, *checkpoints.glob(f"{REMOVING}*")]:
        shutil.rmtree(path, ignore_errors=True)


def reserve(checkpoints: Path, needed_bytes: int) -> Path:
    """An empty staging folder on a disk that has just had room for `needed_bytes`; OSError where it has not."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    clear_leftovers(checkpoints)
    staging = checkpoints / STAGING
    staging.mkdir()
    with open(staging / RESERVE, "wb") as file:  # asks quotas too, which the free space of a disk does not show
        if needed_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, needed_bytes)
    (staging / RESERVE).unlink()
    return staging


def commit(staged: Path, final: Path, about: dict[str, Any]) -> None:
    """Turn a staged folder into the checkpoint `final`; SaveError when the disk gives back other bytes."""
    write_manifest(staged, about)
    if final.exists():  # the same step saved again
        remove(final)
    os.replace(staged, final)
    flush(final.parent)
    if problems := damage(final):
        shutil.rmtree(final, ignore_errors=True)
        raise SaveError(f"what the disk gives back is not what was written: {'; '.join(problems[:3])}")


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: out of sight first, so that no half of one is ever taken for a whole."""
    doomed = checkpoint.with_name(f"{REMOVING}{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
