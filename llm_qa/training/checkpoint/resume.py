"""The checkpoint that training resumes from, and whether it can on this number of processes."""

from __future__ import annotations

import copyreg
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import torch

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.language import tr
from llm_qa.models.safety import PICKLES
from llm_qa.training.checkpoint.manifest import UNIVERSAL, damage
from llm_qa.training.checkpoint.storage import clear_leftovers
from llm_qa.training.strategy import Strategy

# Types besides tensors in the pickles of Trainer's random states and DeepSpeed's partitions: they hold data, not code.
HARMLESS = {
    *("numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "numpy.dtypes.UInt32DType"),
    *("deepspeed.runtime.fp16.loss_scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    *("deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address"),
}


def store_zero_stage_by_value() -> None:
    """Let DeepSpeed's checkpoints hold the ZeRO stage as a number for its class, which is in HARMLESS.

    Python 3.11.2, which Debian 12 has, would store a call of getattr. That could reach any code, so a checkpoint with
    it is refused; 3.11.7 does as is done here.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (int(stage),)))


def checkpoint_step(path: Path) -> int:
    """The step in `checkpoint-<step>`; -1 for another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else -1


def layout(checkpoint: Path) -> tuple[int, int]:
    """(ZeRO stage, number of processes) with which a checkpoint was written; stage 0 is one process or DDP."""
    optimizer_shares = list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))
    model_shares = list(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    if optimizer_shares:
        return (3 if model_shares else 2), len(optimizer_shares)
    return 0, max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


def check_layout(checkpoint: Path, strategy: Strategy) -> bool:
    """Refuse a checkpoint of another engine; True when it must first be converted for another number of processes.

    One process and DDP read each other's checkpoints unchanged. ZeRO's hold one partition of the optimizer state for
    each process; DeepSpeed's universal checkpoint turns them into whole tensors.
    """
    stage, processes = layout(checkpoint)
    if stage != strategy.zero_stage:
        before = f"ZeRO-{stage}" if stage else tr("one process or DDP")
        raise UserError(
            tr(
                "{checkpoint} was made by {before} and this is {strategy}: the optimizer's state "
                "is stored in another form, so use the accelerate config that the run began with, "
                "or start again with --resume never.",
                checkpoint=checkpoint,
                before=before,
                strategy=strategy,
            )
        )
    if processes == strategy.processes:
        return False
    say(
        tr(
            "{checkpoint} was made on {processes} processes and goes on with {strategy}; dropout uses "
            "other random numbers",
            checkpoint=checkpoint,
            processes=processes,
            strategy=strategy,
        )
    )
    return stage > 0


def make_universal(checkpoint: Path) -> None:
    """Convert the partitions of a ZeRO checkpoint to whole tensors, which any number of processes can load.

    Uses DeepSpeed's converter in a separate process (https://www.deepspeed.ai/tutorials/universal-checkpointing/).
    """
    (shares,) = [p for p in checkpoint.glob("global_step*") if not p.name.endswith(UNIVERSAL)]
    whole = shares.with_name(f"{shares.name}{UNIVERSAL}")
    for old in (whole, *checkpoint.glob(f".{whole.name}.*")):  # of an earlier start; no manifest lists it
        shutil.rmtree(old, ignore_errors=True)
    say(tr("making {whole}, which any number of processes can load", whole=whole))
    # A unique name, because the converter of a start that was killed may still be writing.
    staged = whole.with_name(f".{whole.name}.{uuid.uuid4().hex}")
    cores = os.cpu_count() or 1
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--num_extract_workers", str(min(4, cores)), "--num_merge_workers", str(min(2, cores))]
    command += ["--input_folder", str(shares), "--output_folder", str(staged)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            tr("DeepSpeed could not convert {shares}:\n{output}", shares=shares, output=done.stderr[-2000:])
        )
    os.replace(staged, whole)
    files.write_text(checkpoint / "latest_universal", whole.name)


def all_checkpoints(folder: Path) -> list[Path]:
    """The folders named checkpoint-<step> in `folder`, oldest step first."""
    return sorted(
        (p for p in folder.glob("checkpoint-*") if checkpoint_step(p) >= 0 and p.is_dir()), key=checkpoint_step
    )


def missing_states(checkpoint: Path) -> list[str]:
    """Descriptions of the states that a checkpoint lacks for resuming as if training had never stopped.

    From weights alone (`save_only_model`) Trainer would resume without an error, but with new optimizer moments,
    learning rate and random numbers. DeepSpeed stores one partition of the optimizer per process, sometimes with the
    scheduler.
    """
    names = {path.name for path in checkpoint.iterdir()}
    stage, processes = layout(checkpoint)
    random_states = [name for name in names if re.fullmatch(r"rng_state(_\d+)?\.pth", name)]
    found = []
    if stage == 0 and "optimizer.pt" not in names:
        found.append(tr("the optimizer's state"))
    if stage == 0 and "scheduler.pt" not in names:
        found.append(tr("the scheduler's state"))
    if "trainer_state.json" not in names:
        found.append("trainer_state.json")
    if len(random_states) < processes:
        whole = tr("the random numbers' state of every process" if random_states else "the random numbers' state")
        found.append(whole)
    return [tr("it was saved without {what}", what=what) for what in found]


def invalid_reasons(checkpoint: Path) -> list[str]:
    """Why a checkpoint must not be loaded: it is damaged, lacks a state, or loading it could run code.

    DeepSpeed unpickles its partitions, so the types that they name are first compared with a list, without loading.
    """
    found = damage(checkpoint) or missing_states(checkpoint)
    if not found:
        latest = checkpoint / "latest"  # the folder that DeepSpeed reads
        if latest.is_file() and latest.read_text(errors="replace") not in {p.name for p in checkpoint.iterdir()}:
            found.append(tr("latest names a folder that is not in it"))
        pickles = [path for path in checkpoint.rglob("*") if path.suffix in PICKLES]
        for path in sorted(pickles):
            try:
                strangers = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - HARMLESS
            except Exception:  # a damaged pickle can raise anything
                strangers = {tr("something unreadable")}
            if strangers:
                found.append(
                    tr(
                        "{file} would run {what} when it is loaded",
                        file=path.relative_to(checkpoint),
                        what=min(strangers),
                    )
                )
    return found


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest intact checkpoint of a run, None without any; newer damaged ones are reported and set aside.

    To be called by the main process only, with the run's lock: it deletes leftovers and renames.
    """
    folder = Path(run_dir) / files.CHECKPOINTS
    clear_leftovers(folder)
    found = all_checkpoints(folder)
    for checkpoint in reversed(found):
        if not (problems := invalid_reasons(checkpoint)):
            return checkpoint
        aside = set_aside(checkpoint, "damaged")
        more = tr(" and {count} more", count=len(problems) - 3) if len(problems) > 3 else ""
        say(
            tr(
                "{checkpoint} is damaged ({problems}{more}) and set aside as {aside}",
                checkpoint=checkpoint,
                problems="; ".join(problems[:3]),
                more=more,
                aside=aside.name,
            )
        )
    if found:
        say(tr("no intact checkpoint is left in {folder}: training starts again", folder=folder))
    return None


def set_later_aside(checkpoint: Path) -> None:
    """Set aside the checkpoints after the one that a run goes on from, which it will make again.

    Otherwise a kill before that, or the deletion of old checkpoints, would mix the old ones with the new.
    """
    for later in all_checkpoints(checkpoint.parent):
        if checkpoint_step(later) > checkpoint_step(checkpoint):
            say(
                tr(
                    "{later} is later than {name} and set aside as {aside}",
                    later=later,
                    name=checkpoint.name,
                    aside=set_aside(later, "later").name,
                )
            )


def set_aside(checkpoint: Path, why: str) -> Path:
    """Rename a checkpoint to `<why>-<its name>.<n>` so that it no longer counts as one; returns the new path."""
    number = 1
    while (aside := checkpoint.with_name(f"{why}-{checkpoint.name}.{number}")).exists():
        number += 1
    checkpoint.rename(aside)
    return aside


def resume_point(run_dir: str | Path, resume: str) -> Path | None:
    """The checkpoint that `--resume auto|never|PATH` asks for; None to start at step 0. UserError for a bad PATH."""
    if resume == "never":
        return None
    if resume == "auto":
        return newest_checkpoint(run_dir)
    path = Path(resume)
    if not path.is_dir():
        raise UserError(
            tr("--resume {resume}: there is no such checkpoint folder (or say auto or never).", resume=resume)
        )
    if path.resolve().parent != (Path(run_dir) / files.CHECKPOINTS).resolve():
        raise UserError(
            tr(
                "--resume {resume} is a checkpoint of another run: name one of {run_dir}/{checkpoints}.",
                resume=resume,
                run_dir=run_dir,
                checkpoints=files.CHECKPOINTS,
            )
        )
    if problems := invalid_reasons(path):
        raise UserError(
            tr(
                "--resume {resume}: the checkpoint is damaged ({problems}): say auto.",
                resume=resume,
                problems="; ".join(problems[:3]),
            )
        )
    return path
