"""Makes Trainer's checkpoints safe: they are staged, checked and renamed, and a full disk does not end training.

Trainer writes into the final folder and deletes old checkpoints unread
(https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py, `_save_checkpoint`). What is
saved is left to Trainer; where it is saved, when it counts as a checkpoint and which old ones are deleted is decided
here, by all ranks together.

Training waits only while Trainer writes: a thread of the main process hashes, flushes, renames and reads back while
training goes on. All ranks learn the result before the next save and before training ends or stops; the thread itself
does not communicate.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from llm_qa import files
from llm_qa.console import UserError, is_main_process, say
from llm_qa.distributed import all_gather, run_on_main
from llm_qa.language import later, tr
from llm_qa.planning.memory import checkpoint_bytes
from llm_qa.training.callbacks.best import best_first, validation_losses
from llm_qa.training.callbacks.loss_so_far import LossSoFar
from llm_qa.training.checkpoint.resume import all_checkpoints, checkpoint_step, store_zero_stage_by_value
from llm_qa.training.checkpoint.storage import STAGING, SaveError, commit, disk_problem, remove, reserve

WRITING_BYTES_PER_SECOND = 100e6  # a slow disk, until the first save has been timed
NICENESS = 10  # of the saving thread: it gets about a tenth of a core that training also uses
TRIES_AGAIN, SAVED_AS_IT_IS = later("the next save tries again"), later("what was trained is saved now")


@dataclass(frozen=True)
class SavingOptions:
    """What a run decides about its checkpoints."""

    about: dict[str, Any] = field(default_factory=dict)  # written into each manifest
    run_files: dict[Path, str] = field(default_factory=dict)  # path -> text, written again where the folder vanished
    stop_on_error: bool = False  # end training when a checkpoint cannot be saved
    keep_best: bool = False  # keep the checkpoint with the lowest validation loss, beside the newest

    @classmethod
    def of_run(cls, run_dir: Path, signature: dict[str, Any], *, stop_on_error: bool, keep_best: bool) -> SavingOptions:
        """Those of a run folder that is open: its run signature, and the files that it must not be without."""
        names = (files.RECIPE, files.ENVIRONMENT) if is_main_process() else ()
        run_files = {run_dir / name: files.read_text(run_dir / name) for name in names}
        return cls({"run_signature": signature}, run_files, stop_on_error, keep_best)


class CheckpointingTrainer(Trainer):
    """Trainer whose checkpoints are staged, hashed, renamed and read back.

    `patience_seconds` is how long a save of the schedule waits for the one before it to be safe.
    """

    patience_seconds = 0.1

    def __init__(self, *arguments, callbacks: list[TrainerCallback], saving: SavingOptions | None = None, **keywords):
        self.saving = saving or SavingOptions()
        self.loss_so_far = LossSoFar(self)  # here, as Trainer's first state already asks which callbacks have a state
        super().__init__(*arguments, callbacks=[*callbacks, self.loss_so_far], **keywords)
        if self.is_deepspeed_enabled:
            store_zero_stage_by_value()
        self.checkpoints = Path(self.args.output_dir)
        self.staging: Path | None = None
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=let_training_go_first)
        self.commit: Future | None = None  # in the main process
        self.unsettled: int | None = None  # step of the checkpoint whose result is pending, the same on all ranks
        self.last_bytes = 0
        self.save_seconds = 0.0  # of the slowest save so far, from the first byte written to the last read back

    def _get_output_dir(self, trial) -> str:
        return str(self.staging) if self.staging else super()._get_output_dir(trial)

    def train(self, *arguments, **keywords):
        """Trainer's training; a pending checkpoint is finished before this returns, also after an error."""
        self.last_bytes = run_on_main(lambda: sum(map(folder_bytes, all_checkpoints(self.checkpoints)[-1:])))
        try:
            return super().train(*arguments, **keywords)
        finally:
            if self.commit is not None:  # after an error, which the other ranks may not have
                wait([self.commit])
                if error := self.commit.exception():
                    say(
                        tr(
                            "Step {unsettled}: no checkpoint could be saved ({problem})",
                            unsettled=self.unsettled,
                            problem=disk_problem(error) or error,
                        )
                    )

    def _run_epoch(self, *arguments, **keywords) -> None:
        """Trainer's epoch, skipped on resuming from the last step, as Trainer would take one step too many."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **keywords)
        else:
            self.control.should_training_stop = True

    def _finalize_training(self, *arguments):
        """Trainer's end of training, after the last checkpoint is safe; `best.py` chooses the best one."""
        self._settle(SAVED_AS_IT_IS)
        self.state.best_model_checkpoint = None
        return super()._finalize_training(*arguments)

    def needed_bytes(self) -> int:
        """Bytes of the next checkpoint: the size of the last one, or before the first an estimate (`memory.py`)."""
        if self.last_bytes:
            return self.last_bytes
        optim, stage = str(getattr(self.args.optim, "value", self.args.optim)), int(self.is_deepspeed_enabled)
        return sum(
            getattr(p, "ds_numel", p.numel()) * checkpoint_bytes(p.element_size(), optim, stage)
            for p in self.model.parameters()
            if p.requires_grad
        )

    def seconds_to_save(self) -> float:
        """Seconds until a save that begins now is safe, including a pending one before it."""
        whole = self.save_seconds or self.needed_bytes() / WRITING_BYTES_PER_SECOND
        return 2 * whole if self.commit is not None and not self.commit.done() else whole

    def _save_checkpoint(self, model, trial) -> None:
        """One save by all ranks: staged by each and made safe in the background, or given up with a message."""
        step = self.state.global_step
        and_now = SAVED_AS_IT_IS if step >= self.state.max_steps else TRIES_AGAIN
        self.loss_so_far.remember()
        if self.unsettled is not None and run_on_main(self._is_left_out):
            say(
                tr(
                    "Step {step}: no checkpoint, as that of step {unsettled} is still being flushed and "
                    "read back; the next save tries again (set --save-steps higher)",
                    step=step,
                    unsettled=self.unsettled,
                )
            )
            return
        self._settle()
        began = time.monotonic()
        problem = self._attempt(lambda: self._prepare() if is_main_process() else None)
        if not problem:
            self.staging = self.checkpoints / STAGING
            try:
                # Where a rank fails inside DeepSpeed, the others wait in a collective, so the run ends.
                problem = self._attempt(lambda: self._stage(model, trial))
            finally:
                self.staging = None
        if problem:
            self._not_saved(step, problem, and_now)
            return
        self.unsettled = step
        if is_main_process():
            losses = validation_losses(self.state) if self.saving.keep_best else {}
            self.commit = self.thread.submit(self._publish, step, losses, began)
        if self.control.should_training_stop or self.saving.stop_on_error:
            self._settle(and_now)

    def _is_left_out(self) -> bool:
        """Whether a save is skipped for a pending one: only a scheduled save, which others will follow."""
        scheduled = self.args.save_strategy == SaveStrategy.STEPS and not self.control.should_training_stop
        losses = validation_losses(self.state) if self.saving.keep_best else {}
        if not scheduled or best_first(losses, losses)[:1] == [self.state.global_step]:
            return False
        # The main process, which alone asks, has a commit wherever there is an unsettled step.
        return bool(wait([self.commit], self.patience_seconds).not_done)  # type: ignore[list-item]

    def _attempt(self, work: Callable) -> str:
        """Do `work` on this rank; returns the first error of any rank, '' when there is none."""
        problem = ""
        try:
            work()
        except Exception as error:
            problem = disk_problem(error)
            if not problem:
                raise
        return next((told for told in all_gather(problem) if told), "")

    def _prepare(self) -> None:
        for path, text in self.saving.run_files.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        try:
            reserve(self.checkpoints, self.needed_bytes())
        except OSError as error:
            # The last checkpoint's size is certain, an estimate is not. Under DeepSpeed a disk that fills up during a
            # save ends the run, because the other ranks wait in a collective.
            if self.last_bytes or self.is_deepspeed_enabled or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            say(
                tr(
                    "Step {step}: a checkpoint is estimated at {needed:,} bytes{free}: trying nevertheless",
                    step=self.state.global_step,
                    needed=self.needed_bytes(),
                    free=free_bytes(self.checkpoints),
                )
            )
            reserve(self.checkpoints, 0)

    def _stage(self, model, trial) -> None:
        """Trainer's own save, into the staging folder."""
        self.state.best_global_step = None  # else Trainer would record the staged folder (reduce_lr_on_plateau)
        with without_crc32():
            super()._save_checkpoint(model, trial)
        if is_main_process():
            staged = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads

    def _publish(self, step: int, losses: dict[int, float], began: float) -> tuple[int, float]:
        """Make the staged folder a checkpoint and delete old ones; returns (bytes, seconds since `began`).

        The checkpoint with the lowest of `losses` is kept too. Runs in a thread while training goes on, so it reads
        nothing that training changes.
        """
        final = self.checkpoints / f"checkpoint-{step}"
        commit(self.checkpoints / STAGING / final.name, final, {"step": step, **self.saving.about})
        size = folder_bytes(final)
        (self.checkpoints / STAGING).rmdir()
        limit = self.args.save_total_limit
        if limit and limit > 0:
            there = {checkpoint_step(path): path for path in all_checkpoints(self.checkpoints)}
            kept = {final, *(there[best] for best in best_first(losses, there)[:1])}
            old = [path for path in there.values() if path not in kept]
            for path in old[: max(0, len(old) + len(kept) - max(limit, len(kept)))]:
                remove(path)
        return size, time.monotonic() - began

    def _settle(self, and_now: str = TRIES_AGAIN) -> None:
        """Wait until the pending checkpoint is safe, or report that it is not; every rank must call it."""
        if self.unsettled is None:
            return
        problem = self._attempt(self._hear)
        done, self.commit = self.commit, None
        step, self.unsettled = self.unsettled, None
        if problem:
            self._not_saved(step, problem, and_now)
        else:
            # The main process, which alone asks, has heard of the commit without a problem.
            self.last_bytes, seconds = run_on_main(lambda: done.result())  # type: ignore[union-attr]
            self.save_seconds = max(self.save_seconds, seconds)

    def _hear(self) -> None:
        """Wait for the thread. Any error of it means an unsaved checkpoint; it does not end this rank alone."""
        error = self.commit and self.commit.exception()
        if error:
            raise SaveError(disk_problem(error) or f"{type(error).__name__}: {error}") from error

    def _not_saved(self, step: int, problem: str, and_now: str) -> None:
        if is_main_process():
            shutil.rmtree(self.checkpoints / STAGING, ignore_errors=True)
        sentence = tr(
            "Step {step}: no checkpoint could be saved in {folder} ({problem}). It needs {needed:,} bytes{free}; "
            "the older checkpoints stay as they are",
            step=step,
            folder=self.checkpoints,
            problem=problem,
            needed=self.needed_bytes(),
            free=run_on_main(lambda: free_bytes(self.checkpoints)),
        )
        stopping = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        if self.saving.stop_on_error or (stopping and step == self.state.global_step):
            raise UserError(
                tr("{sentence}. Make room, or correct the folder, and run the same command again.", sentence=sentence)
            )
        say(tr("{sentence}, and {and_now}.", sentence=sentence, and_now=tr(and_now)))


@contextmanager
def without_crc32() -> Iterator[None]:
    """Let torch.save leave its CRC32 out, which takes longer than the writing: the manifest has a SHA-256 of each file.

    https://docs.pytorch.org/docs/stable/notes/serialization.html#torch.serialization.set_crc32_options
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def let_training_go_first() -> None:
    """Lower the priority of this thread and of those that it starts; only Linux has priorities per thread."""
    if sys.platform == "linux":
        with suppress(OSError):  # not permitted: training is a little slower
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> str:
    """The free space of a folder's disk as the end of a clause; '' where it cannot be determined."""
    try:
        return tr(" and {bytes:,} are free", bytes=shutil.disk_usage(folder).free)
    except OSError:
        return ""
