"""A transformers.Trainer from a recipe: its arguments, its callbacks, nothing overridden."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import IntervalStrategy

from llm_qa import files
from llm_qa.config import Recipe
from llm_qa.console import UserError, say
from llm_qa.data.packing import PackedDataset, collate_packs
from llm_qa.models.quantization import Precision


def world_size() -> int:
    """Number of processes that `accelerate launch` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def accumulation_steps(recipe: Recipe, world: int) -> int:
    """Forward passes a GPU makes before an update, so that the global batch is the recipe's on any number of GPUs."""
    at_once = recipe.micro_batch_size * world
    if recipe.global_batch_size % at_once:
        raise UserError(
            f"global_batch_size {recipe.global_batch_size} is not a multiple of micro_batch_size "
            f"{recipe.micro_batch_size} x {world} processes: set --global-batch-size to a multiple of {at_once}."
        )
    return recipe.global_batch_size // at_once


def training_arguments(recipe: Recipe, precision: Precision, run_dir: str | Path) -> TrainingArguments:
    """TrainingArguments of a recipe: its own TrainingArguments names over the project's defaults."""
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    on_cpu = not torch.cuda.is_available()
    values = {
        "logging_steps": 10,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": 100,
        "save_total_limit": 2,
        # By steps, because validation by epochs comes after the epoch's last checkpoint and moves the random numbers: a
        # run that resumes from that checkpoint would go another way.
        "eval_strategy": "steps",
        "eval_steps": recipe.training.get("save_steps", 100),
        "report_to": "none",
        "lr_scheduler_type": "cosine",
        **recipe.training,
        "output_dir": str(Path(run_dir) / files.CHECKPOINTS),
        "per_device_train_batch_size": recipe.micro_batch_size,
        "per_device_eval_batch_size": recipe.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(recipe, world_size()),
        "bf16": precision.autocast == "bf16",
        "fp16": precision.autocast == "fp16",
        checkpointing: recipe.recompute,
        f"{checkpointing}_kwargs": {"use_reentrant": False} if recipe.recompute else None,
        "seed": recipe.seed,
        "logging_nan_inf_filter": False,  # it logs NaN as 0.0 and goes on
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "disable_tqdm": True,  # StepLog draws the bar
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,
        "use_cpu": on_cpu,
    }
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed would say at import that it found no GPU
    if on_cpu and world_size() > 1:
        values["ddp_backend"] = "gloo"
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"The recipe's training arguments do not fit together: {told}") from error
    check_reporters(arguments)
    return arguments


def check_reporters(arguments: TrainingArguments) -> None:
    """Refuse a --report-to that transformers does not know or that is not installed."""
    try:
        get_reporting_integration_callbacks(arguments.report_to)
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"--report-to {','.join(arguments.report_to)}: {' '.join(str(error).split())}") from None


def build_trainer(
    model: torch.nn.Module,
    tokenizer,
    arguments: TrainingArguments,
    train_set: PackedDataset,
    validation_set: PackedDataset | None,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """Trainer on packs, with the project's own log line and bar in place of Trainer's."""
    if validation_set is None:
        say("the data has no validation records: no validation loss during training")
        arguments.eval_strategy = IntervalStrategy.NO
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=partial(collate_packs, pad_token_id=tokenizer.pad_token_id),
        train_dataset=train_set,
        eval_dataset=validation_set,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
