"""Checkpoints of a run: which one training goes on from."""

from __future__ import annotations

import re
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError, say

NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def checkpoint_step(path: Path) -> int:
    """The step in `checkpoint-<step>`; -1 for another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else -1


def missing_parts(checkpoint: Path) -> list[str]:
    """Names of files without which Trainer would raise or, worse, resume to another result in silence."""
    present = {path.name for path in checkpoint.iterdir() if path.stat().st_size > 0}
    missing = [name for name in NEEDED if name not in present]
    if not present & set(WEIGHTS):
        missing.append(WEIGHTS[0])
    if not any(name.startswith("rng_state") for name in present):
        missing.append("rng_state.pth")
    return missing


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a run; newer incomplete ones are named and passed over. None without any."""
    folder = Path(run_dir) / files.CHECKPOINTS
    found = sorted((p for p in folder.glob("checkpoint-*") if checkpoint_step(p) >= 0), key=checkpoint_step)
    for checkpoint in reversed(found):
        missing = missing_parts(checkpoint)
        if not missing:
            return checkpoint
        say(f"{checkpoint} is incomplete (no {', '.join(missing)}) and is passed over")
    return None


def resume_point(run_dir: str | Path, resume: str) -> Path | None:
    """The checkpoint that `--resume auto|never|PATH` asks for; None to start at step 0. UserError for a bad PATH."""
    if resume == "never":
        return None
    if resume == "auto":
        return newest_checkpoint(run_dir)
    path = Path(resume)
    if not path.is_dir():
        raise UserError(f"--resume {resume}: there is no such checkpoint folder (or say auto or never).")
    if path.resolve().parent != (Path(run_dir) / files.CHECKPOINTS).resolve():
        raise UserError(f"--resume {resume} is a checkpoint of another run: name one of {run_dir}/{files.CHECKPOINTS}.")
    if missing := missing_parts(path):
        raise UserError(f"--resume {resume}: the checkpoint is incomplete, it has no {', '.join(missing)}.")
    return path
