"""The best checkpoint by validation loss is saved, kept, and becomes the run's final weights.

The losses are read from Trainer's log history, which every checkpoint contains, so a resumed run chooses the same
checkpoint as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import SaveStrategy

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError, say
from llm_qa.language import tr
from llm_qa.training.checkpoint.resume import all_checkpoints, checkpoint_step, invalid_reasons


def validation_losses(state: TrainerState) -> dict[int, float]:
    """Step -> validation loss, in nats per label token, of every evaluation so far."""
    return {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}


def best_first(losses: dict[int, float], steps: Iterable[int]) -> list[int]:
    """Those of `steps` that were validated, by increasing loss; of equal losses the earlier step first."""
    return sorted((step for step in {*steps} if step in losses), key=lambda step: (losses[step], step))


def check_early_stopping(recipe: Recipe, validates: bool) -> None:
    """UserError for early stopping in a run that has no validation loss."""
    if recipe.early_stopping and not validates:
        raise UserError(
            tr(
                "early_stopping {evaluations} needs a validation loss, and the data has no "
                "validation records or eval_strategy is no: prepare the data with --validation, or "
                "leave out --early-stopping.",
                evaluations=recipe.early_stopping,
            )
        )


class BestCheckpoint(TrainerCallback):
    """Saves a checkpoint at each new lowest validation loss; stops after `early_stopping` evaluations without one."""

    def __init__(self, recipe: Recipe):
        self.keeps_best = recipe.keep == "best"
        self.patience = recipe.early_stopping

    def _is_over(self, state) -> bool:
        losses = validation_losses(state)
        if not self.patience or not losses:
            return False
        best = best_first(losses, losses)[0]
        return sum(step > best for step in losses) >= self.patience

    def on_train_begin(self, args, state, control, **kwargs):
        """Stop at once in a run that had stopped early and was killed before its end."""
        if self._is_over(state):
            state.max_steps = state.global_step

    def on_evaluate(self, args, state, control, **kwargs):
        """Request a save where the loss is the lowest so far (Trainer saves after evaluating), and stop early."""
        losses = validation_losses(state)
        over = self._is_over(state)
        if over and state.global_step < state.max_steps:
            best = best_first(losses, losses)[0]
            say(
                tr(
                    "early stopping at step {step} of {steps}: the validation loss has not been below "
                    "that of step {best} ({loss:.4f}) in {evaluations} evaluations",
                    step=state.global_step,
                    steps=state.max_steps,
                    best=best,
                    loss=losses[best],
                    evaluations=self.patience,
                )
            )
            state.max_steps = state.global_step
            control.should_training_stop = True
        is_best = self.keeps_best and best_first(losses, losses)[0] == state.global_step
        if (over or is_best) and args.save_strategy != SaveStrategy.NO:
            control.should_save = True


@dataclass(frozen=True)
class Kept:
    """The chosen weights: their step, validation loss and checkpoint (None: the weights at the end of training)."""

    step: int
    validation_loss: float
    checkpoint: Path | None

    def __str__(self) -> str:
        return tr("step {step}, validation loss {loss:.4f}", step=self.step, loss=self.validation_loss)


def choose_best(state: TrainerState, run_dir: str | Path) -> Kept | None:
    """The best weights that still exist at the end of training; None without validation. Prints what is missing.

    To be called by the main process only, when the last checkpoint is safely on the disk.
    """
    losses = validation_losses(state)
    there = {checkpoint_step(path): path for path in all_checkpoints(Path(run_dir) / files.CHECKPOINTS)}
    lowest = next(iter(best_first(losses, losses)), None)
    if lowest is not None and lowest not in (*there, state.global_step):
        say(
            tr(
                "step {lowest} had the lowest validation loss ({loss:.4f}) and has no checkpoint",
                lowest=lowest,
                loss=losses[lowest],
            )
        )
    for step in best_first(losses, [*there, state.global_step]):
        if step == state.global_step:
            return Kept(step, losses[step], None)
        if not (problem := unusable(there[step])):
            return Kept(step, losses[step], there[step])
        say(
            tr(
                "{checkpoint} (validation loss {loss:.4f}) {problem}: the next best is taken",
                checkpoint=there[step],
                loss=losses[step],
                problem=problem,
            )
        )
    return None


def unusable(checkpoint: Path) -> str:
    """Why the weights of a checkpoint cannot become the final ones; '' where they can."""
    if problems := invalid_reasons(checkpoint):
        return tr("is damaged ({problems})", problems="; ".join(problems[:3]))
    if not list(checkpoint.glob("*.safetensors")):
        return tr("holds no whole weights, as stage3_gather_16bit_weights_on_model_save is off in the DeepSpeed config")
    return ""
