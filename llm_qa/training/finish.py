"""The end of a run: which weights it ends with, training.json, and the final folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe
from llm_qa.console import StoppedEarly, format_seconds, is_main_process, say
from llm_qa.distributed import gather_over_ranks, run_on_main
from llm_qa.language import tr
from llm_qa.migrations import stamped
from llm_qa.models.fast.choice import FastPath
from llm_qa.models.loading import EMBEDDED_BASE
from llm_qa.planning import this_gpu
from llm_qa.training.callbacks.best import Kept, choose_best
from llm_qa.training.callbacks.run_callbacks import RunCallbacks
from llm_qa.training.data_sets import DataSets
from llm_qa.training.model_setup import TrainableModel
from llm_qa.training.run_folder import save_final
from llm_qa.training.strategy import Strategy, engine_report, final_weights
from llm_qa.training.trainer import PackTrainer

ANSWERS_PERCENTILE = 99  # what the summary calls the length of answers


@dataclass(frozen=True)
class TrainedRun:
    """A run whose training has ended, after its last step or before."""

    folder: Path
    recipe: Recipe
    strategy: Strategy
    data: DataSets
    trainable: TrainableModel
    path: FastPath
    callbacks: RunCallbacks
    trainer: PackTrainer

    @property
    def finished(self) -> bool:
        """False for a run that was stopped by a signal or its wall-clock budget."""
        return self.callbacks.stop.reason is None


def best_of(run: TrainedRun) -> Kept | None:
    """The weights with the lowest validation loss; None where the last ones are kept. Every rank must call it."""
    if not run.finished or run.recipe.keep != "best":
        return None
    return run_on_main(lambda: choose_best(run.trainer.state, run.folder))


def write_summary(run: TrainedRun, kept: Kept | None) -> dict[str, Any]:
    """Write training.json and return what it says; every rank must call it."""
    summary = summarise(run, kept)
    if is_main_process():
        if run.finished:
            summary |= run.callbacks.log.compare(summary["steps"], max(summary["peak_memory_bytes"]))
        files.write_json(run.folder / files.TRAINING, stamped(summary))
    return summary


def summarise(run: TrainedRun, kept: Kept | None) -> dict[str, Any]:
    """What was trained on what, how fast and with which memory: the values of training.json, by their names there."""
    state, log = run.trainer.state, run.callbacks.log
    seconds = log.elapsed()
    tokens_per_second = state.num_input_tokens_seen / seconds
    return {
        "finished": run.finished,
        "kept": {"step": kept.step, "validation_loss": kept.validation_loss} if kept else None,
        "steps": state.global_step,
        "epochs": state.epoch,
        "records": run.data.num_records,
        "pairs": len(run.data.pairs),
        files.ANSWER_TOKENS: run.data.pairs.answer_tokens(ANSWERS_PERCENTILE),
        "tokens": state.num_input_tokens_seen,
        "wall_seconds": round(seconds, 3),
        "start_up_seconds": log.start_up_seconds,
        "tokens_per_second": round(tokens_per_second, 1),
        "mfu": log.mfu(tokens_per_second / run.strategy.processes),
        "seconds_per_epoch": round(seconds / state.epoch, 3),
        "peak_memory_bytes": gather_over_ranks(this_gpu.peak_memory_bytes(), run.trainer.args.device),
        "energy_joules": run.callbacks.energy.joules(),
        "device": this_gpu.device_name(),
        "strategy": run.strategy.name,
        "path": "fast path" if run.path.active else "plain path",
        "processes": run.strategy.processes,
        "engine": engine_report(run.trainer),
        "total_parameters": run.trainable.total_parameters,
        "trainable_parameters": run.trainable.trainable_parameters,
    }


def stopped_early(run: TrainedRun) -> StoppedEarly:
    """What a run ends with that was stopped before its last step: everything is saved, nothing is lost."""
    state = run.trainer.state
    return StoppedEarly(
        tr(
            "stopped early at step {step} of {steps} ({reason}); everything is saved in {folder}, "
            "and the same command goes on",
            step=state.global_step,
            steps=state.max_steps,
            reason=run.callbacks.stop.reason,
            folder=run.folder,
        )
    )


def save_weights(run: TrainedRun, kept: Kept | None, source: str, tokenizer, summary: dict[str, Any]) -> None:
    """Save the adapter or the model, of the `kept` checkpoint or of now, and say where; every rank must call it.

    The embedded base, which no hub has, goes along from its folder, `source`.
    """
    trainer = run.trainer
    weights = kept.checkpoint if kept and kept.checkpoint else final_weights(trainer)

    def save() -> Path:
        if run.recipe.model == EMBEDDED_MODEL:
            shutil.copytree(source, run.folder / EMBEDDED_BASE, dirs_exist_ok=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        return save_final(model, weights, tokenizer, run.folder, run.recipe, summary)

    final = run_on_main(save)
    say(
        tr(
            "done: {steps} steps in {time}, {rate:,.0f} tok/s",
            steps=summary["steps"],
            time=format_seconds(summary["wall_seconds"]),
            rate=summary["tokens_per_second"],
        )
    )
    say(tr("{final} is saved and read back equal", final=final))
    if kept:
        say(tr("it holds the best checkpoint ({kept}; --keep last keeps the last)", kept=kept))
