"""Trainer's checkpoints made safe: its own save, led into a staging folder, and a disk that fails ends nothing.

Trainer writes into the final folder and deletes old checkpoints unread
(https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py, `_save_checkpoint`). What is
saved stays Trainer's; where, when it counts and which old ones go is decided here, by all ranks together.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from llm_qa.console import UserError, is_main_process, say
from llm_qa.training.checkpoints import all_checkpoints
from llm_qa.training.ranks import on_main, sum_over_ranks, tell_all
from llm_qa.training.staging import STAGING, commit, disk_problem, remove, reserve

WRITING_BYTES_PER_SECOND = 100e6  # a slow disk, until the first save has been timed


class LossSoFar(TrainerCallback, ExportableState):
    """Keeps the loss since the last logged step in the checkpoint, which Trainer forgets.

    Without it the first line after a resume averages only the steps since then. One number a rank: the logged loss is
    their mean.
    """

    def __init__(self):
        self.trainer: Trainer | None = None
        self.by_rank: list[float] = []
        self.last_logged = 0

    def state(self) -> dict:
        """What Trainer saves with each checkpoint."""
        return {"args": {}, "attributes": {"by_rank": self.by_rank, "last_logged": self.last_logged}}

    def remember(self) -> None:
        """Take the numbers from the trainer; every rank must call it."""
        arguments = self.trainer.args
        mine = [0.0] * arguments.world_size
        mine[arguments.process_index] = self.trainer._tr_loss.item()
        self.by_rank = sum_over_ranks(mine, arguments.device)
        self.last_logged = self.trainer._globalstep_last_logged

    def on_train_begin(self, args, state, control, **kwargs):
        """Give the numbers back; on another number of processes each gets their mean, which keeps the logged loss."""
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if not saved or not saved["attributes"]["by_rank"]:
            return
        by_rank = saved["attributes"]["by_rank"]
        same = len(by_rank) == args.world_size
        self.trainer._tr_loss += by_rank[args.process_index] if same else sum(by_rank) / len(by_rank)
        self.trainer._globalstep_last_logged = saved["attributes"]["last_logged"]


class SafeSaving(Trainer):
    """Trainer whose checkpoints are staged, hashed, renamed and read back.

    `about` goes into each manifest; `run_files` (path -> text) are written again where the run folder vanished.
    """

    about: dict = {}  # noqa: RUF012  set once by build_trainer
    run_files: dict[Path, str] = {}  # noqa: RUF012
    stop_when_unsaved = False

    def __init__(self, *arguments, callbacks: list[TrainerCallback], **keywords):
        self.loss_so_far = LossSoFar()
        super().__init__(*arguments, callbacks=[*callbacks, self.loss_so_far], **keywords)
        self.loss_so_far.trainer = self
        self.staging: Path | None = None
        self.last_bytes = 0

    def _get_output_dir(self, trial) -> str:
        return str(self.staging) if self.staging else super()._get_output_dir(trial)

    def _run_epoch(self, *arguments, **keywords) -> None:
        """Trainer's epoch; none for a checkpoint of the last step, from which Trainer would take one step too many."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **keywords)
        else:
            self.control.should_training_stop = True

    def needed_bytes(self) -> int:
        """Bytes of the next checkpoint: those of the last one, or before it what trains with two moments in fp32."""
        if self.last_bytes:
            return self.last_bytes
        trained = [getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad]
        return sum(trained) * (16 if self.is_deepspeed_enabled else 12)

    def _save_checkpoint(self, model, trial) -> None:
        """One save by all ranks: done everywhere, or nowhere and said aloud."""
        checkpoints = Path(self.args.output_dir)
        self.loss_so_far.remember()
        problem = self._attempt(lambda: is_main_process() and self._prepare(checkpoints))
        if not problem:
            self.staging = checkpoints / STAGING
            try:
                # A rank that fails inside DeepSpeed leaves the others in a collective: there they end with it.
                problem = self._attempt(lambda: super(SafeSaving, self)._save_checkpoint(model, trial))
            finally:
                self.staging = None
        if not problem:
            problem = self._attempt(lambda: is_main_process() and self._publish(checkpoints))
        if problem:
            self._not_saved(checkpoints, problem)
        else:
            self.last_bytes = int(on_main(lambda: self.last_bytes))

    def _attempt(self, work: Callable) -> str:
        """Do `work` on this rank and hear what went wrong on any; '' when nothing did."""
        problem = ""
        try:
            work()
        except Exception as error:
            problem = disk_problem(error)
            if not problem:
                raise
        return next((told for told in tell_all(problem) if told), "")

    def _prepare(self, checkpoints: Path) -> None:
        for path, text in self.run_files.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        reserve(checkpoints, self.needed_bytes())

    def _publish(self, checkpoints: Path) -> None:
        name = f"checkpoint-{self.state.global_step}"
        staged, final = checkpoints / STAGING / name, checkpoints / name
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (checkpoints / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(checkpoints / f"checkpoint-{best}")
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        commit(staged, final, {"step": self.state.global_step, **self.about})
        self.last_bytes = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
        (checkpoints / STAGING).rmdir()
        limit = self.args.save_total_limit
        if limit and limit > 0:
            kept = {final, Path(self.state.best_model_checkpoint or final)}
            old = [path for path in all_checkpoints(checkpoints) if path not in kept]
            for path in old[: max(0, len(old) + len(kept) - max(limit, len(kept)))]:
                remove(path)

    def _not_saved(self, checkpoints: Path, problem: str) -> None:
        if is_main_process():
            shutil.rmtree(checkpoints / STAGING, ignore_errors=True)
        step = self.state.global_step
        sentence = (
            f"Step {step}: no checkpoint could be saved in {checkpoints} ({problem}). It needs {self.needed_bytes():,} "
            f"bytes{on_main(lambda: free_bytes(checkpoints))}; the older checkpoints stay as they are"
        )
        early = self.control.should_training_stop and step < self.state.max_steps
        if early or self.stop_when_unsaved:
            raise UserError(f"{sentence}. Make room, or correct the folder, and run the same command again.")
        over = step >= self.state.max_steps
        say(f"{sentence}, and {'what was trained is saved now' if over else 'the next save tries again'}.")


def free_bytes(folder: Path) -> str:
    """How much is free where a folder is, as the end of a clause; '' where even that cannot be asked."""
    try:
        return f" and {shutil.disk_usage(folder).free:,} are free"
    except OSError:
        return ""
