"""Checkpoints of a run: which one training goes on from, and on how many processes it can."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.training.strategy import Strategy

NEEDED = ("trainer_state.json", "scheduler.pt")
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def checkpoint_step(path: Path) -> int:
    """The step in `checkpoint-<step>`; -1 for another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else -1


def missing_parts(checkpoint: Path) -> list[str]:
    """Names of files without which Trainer would raise or, worse, resume to another result in silence."""
    present = {path.name for path in checkpoint.iterdir() if path.stat().st_size > 0}
    stage, _ = layout(checkpoint)
    missing = [name for name in (*NEEDED, "latest" if stage else "optimizer.pt") if name not in present]
    if not present & set(WEIGHTS):
        missing.append(WEIGHTS[0])
    if not any(name.startswith("rng_state") for name in present):
        missing.append("rng_state.pth")
    return missing


def layout(checkpoint: Path) -> tuple[int, int]:
    """(ZeRO stage, number of processes) that wrote a checkpoint; stage 0 is one process or DDP."""
    optimizer_shares = list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))
    model_shares = list(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    if optimizer_shares:
        return (3 if model_shares else 2), len(optimizer_shares)
    return 0, max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


def check_layout(checkpoint: Path, strategy: Strategy) -> bool:
    """Refuse a checkpoint of another engine; True when it must be reshaped first, for another number of processes.

    One process and DDP read each other's checkpoints as they are. ZeRO's hold one share of the optimizer for each
    process; DeepSpeed's universal checkpoint turns them into whole tensors.
    """
    stage, processes = layout(checkpoint)
    if stage != strategy.zero_stage:
        before = f"ZeRO-{stage}" if stage else "one process or DDP"
        raise UserError(
            f"{checkpoint} was made by {before} and this is {strategy}: the optimizer's state is kept differently "
            "there, so use the accelerate config that the run began with, or begin anew with --resume never."
        )
    if processes == strategy.processes:
        return False
    say(f"{checkpoint} was made on {processes} processes and goes on with {strategy}; dropout draws other numbers")
    return stage > 0


def make_universal(checkpoint: Path) -> None:
    """Turn the shares of a ZeRO checkpoint into whole tensors beside them, which any number of processes can load.

    DeepSpeed's own converter, in a process of its own (https://www.deepspeed.ai/tutorials/universal-checkpointing/).
    """
    (shares,) = [p for p in checkpoint.glob("global_step*") if not p.name.endswith("_universal")]
    whole = shares.with_name(f"{shares.name}_universal")
    if not (checkpoint / "latest_universal").is_file():
        say(f"making {whole}, which any number of processes can load")
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(shares), "--output_folder", str(whole)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"DeepSpeed could not convert {shares}:\n{done.stderr[-2000:]}")
        files.write_text(checkpoint / "latest_universal", whole.name)


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
