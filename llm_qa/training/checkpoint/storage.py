"""Writes checkpoints atomically: staged in a hidden folder, hashed, flushed, renamed and read back.

Only then are older checkpoints deleted. These functions only handle files; `trainer_hooks.py` connects them to Trainer.
A process may be killed between any two lines here: `clear_leftovers` deletes what it left, and a folder named
`checkpoint-<step>` is always complete.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from llm_qa.language import tr
from llm_qa.training.checkpoint.manifest import damage, flush, write_manifest

STAGING = ".staging"
REMOVING = ".removing-"
RESERVE = ".reserve"


class SaveError(Exception):
    """A checkpoint could not be written or reads back differently; older checkpoints are unchanged."""


def disk_problem(error: BaseException) -> str:
    """What a disk refused, in words; '' for an error of another kind. Libraries have errors of their own for it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    told = " ".join(str(error).split())[:200]
    rust = "(os error " in told  # tokenizers raises a plain Exception
    known = isinstance(error, SaveError) or type(error).__name__ == "SafetensorError"
    return told if known or rust or "PytorchStreamWriter" in told else ""


def clear_leftovers(checkpoints: Path) -> None:
    """Delete what unfinished saves have left."""
    for path in [checkpoints / STAGING, *checkpoints.glob(f"{REMOVING}*")]:
        shutil.rmtree(path, ignore_errors=True)


def reserve(checkpoints: Path, needed_bytes: int) -> Path:
    """An empty staging folder on a disk that has just had room for `needed_bytes`; OSError where it has not."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    clear_leftovers(checkpoints)
    staging = checkpoints / STAGING
    staging.mkdir()
    with open(staging / RESERVE, "wb") as file:  # respects quotas, which the disk's free space does not show
        if needed_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, needed_bytes)
    (staging / RESERVE).unlink()
    return staging


def commit(staged: Path, final: Path, about: dict[str, Any]) -> None:
    """Turn a staged folder into the checkpoint `final`; SaveError when it reads back differently."""
    write_manifest(staged, about)
    if final.exists():  # the same step saved again
        remove(final)
    os.replace(staged, final)
    flush(final.parent)
    if problems := damage(final):
        shutil.rmtree(final, ignore_errors=True)
        told = "; ".join(problems[:3])
        raise SaveError(tr("it reads back differently from what was written: {told}", told=told))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint. It is hidden first, so that a half-deleted one is never taken for a checkpoint."""
    doomed = checkpoint.with_name(f"{REMOVING}{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
