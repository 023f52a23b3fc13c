"""Builds transformers.Trainer from a recipe: arguments, callbacks, and its own saving and validation loss."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError, progress, say
from llm_qa.data.packing import IGNORED, PackedDataset, pack_collator
from llm_qa.distributed import sum_over_ranks
from llm_qa.language import tr
from llm_qa.models.fast.choice import FastPath
from llm_qa.models.precision import Precision
from llm_qa.training.callbacks.best import check_early_stopping
from llm_qa.training.callbacks.tracking import check_trackers
from llm_qa.training.checkpoint.trainer_hooks import CheckpointingTrainer, SavingOptions
from llm_qa.training.internals import deepspeed_config, use_one_gpu
from llm_qa.training.optimizer import check_optimizer, choose_optimizer, optimizer_defaults, optimizer_report
from llm_qa.training.strategy import Strategy, accumulation_steps, micro_batch_size
from llm_qa.training.zero3 import gather_by_layer

LEAST_VALIDATIONS = 5  # in a run


def training_arguments(
    recipe: Recipe, precision: Precision, strategy: Strategy, run_dir: str | Path
) -> TrainingArguments:
    """TrainingArguments of a recipe: its training arguments over the project's defaults."""
    check_optimizer(recipe, strategy)
    if recipe.training.get("save_strategy") == "best":
        raise UserError(
            tr("save_strategy best: set it to steps, and --keep best (the default) keeps the best checkpoint.")
        )
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    on_cpu = not torch.cuda.is_available()
    values = {
        "logging_steps": 10,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": 100,
        "save_total_limit": 2,
        # By steps, because validation by epochs comes after the epoch's last checkpoint and uses random numbers: a run
        # that resumes from that checkpoint would take a different course.
        "eval_strategy": "steps",
        "eval_steps": recipe.training.get("save_steps", 100),
        "report_to": "none",
        # All ranks wait while the main process hashes a checkpoint, converts it to a universal one or saves the
        # model: with 12.8B that can take longer than Trainer's half an hour. The watchdog notices ranks that die.
        "ddp_timeout": 3 * 3600,
        "lr_scheduler_type": "cosine",
        # A blocking copy would synchronise with the GPU before every pass.
        "accelerator_config": {"non_blocking": not on_cpu},
        **optimizer_defaults(recipe),
        **recipe.training,
        "output_dir": str(Path(run_dir) / files.CHECKPOINTS),
        "per_device_train_batch_size": micro_batch_size(recipe, strategy.processes),
        "per_device_eval_batch_size": micro_batch_size(recipe, strategy.processes),
        "gradient_accumulation_steps": accumulation_steps(recipe, strategy.processes),
        "bf16": precision.autocast == "bf16",
        "fp16": precision.autocast == "fp16",
        checkpointing: recipe.recompute != "none",
        f"{checkpointing}_kwargs": {"use_reentrant": False} if recipe.recompute != "none" else None,
        "seed": recipe.seed,
        "logging_nan_inf_filter": False,  # it would log NaN as 0.0
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "disable_tqdm": True,  # StepLog draws the bar
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,
        "use_cpu": on_cpu,
    }
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed would warn at import that it found no GPU
    if on_cpu and (strategy.processes > 1 or strategy.deepspeed):
        values["ddp_backend"] = "gloo"
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        told = " ".join(str(error).split())
        raise UserError(tr("The recipe's training arguments do not fit together: {told}", told=told)) from error
    if arguments.n_gpu > 1:  # Trainer would use all of them by DataParallel, with larger batches
        say(tr("one process trains on one of the {gpus} GPUs here (make train-ddp uses all)", gpus=arguments.n_gpu))
        use_one_gpu(arguments)
    check_trackers(arguments)
    return arguments


def schedule_validation(
    arguments: TrainingArguments, recipe: Recipe, train_set: PackedDataset, validation_set: PackedDataset | None
) -> None:
    """Fit the steps at which a run is validated to its data; UserError for early stopping without a validation."""
    check_early_stopping(recipe, validation_set is not None and arguments.eval_strategy != IntervalStrategy.NO)
    if validation_set is not None:
        fit_validation_steps(arguments, recipe, len(train_set.packs))


def fit_validation_steps(arguments: TrainingArguments, recipe: Recipe, packs: int) -> None:
    """Set eval_steps and save_steps for LEAST_VALIDATIONS in a short run, unless its recipe sets them.

    `packs` is the number of packs in the training set. The best of only one or two validations would mean little.
    """
    by_steps = arguments.eval_strategy == IntervalStrategy.STEPS
    if not by_steps or {"save_steps", "eval_steps"} & recipe.training.keys():
        return
    epochs = math.ceil(packs / recipe.global_batch_size) * arguments.num_train_epochs
    updates = arguments.max_steps if arguments.max_steps > 0 else math.ceil(epochs)
    arguments.eval_steps = arguments.save_steps = min(arguments.save_steps, math.ceil(updates / LEAST_VALIDATIONS))


def use_fast_path(arguments: TrainingArguments, path: FastPath) -> None:
    """Turn Trainer's activation checkpointing off, as the fast path recomputes layers itself."""
    if path.active:
        arguments.gradient_checkpointing = False
        if hasattr(arguments, "activation_checkpointing"):
            arguments.activation_checkpointing = False


class PackTrainer(CheckpointingTrainer):
    """Trainer with a validation loss that is a mean over label tokens, the same on any number of processes.

    Trainer's own is a mean over batches, in which a pack of few label tokens counts as much as a full one.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Trainer's, but weights of a full model are loaded by from_pretrained, which translates their names on disk.

        Trainer does not translate names and ignores those that differ: GPT-NeoX's head is stored as `embed_out` and
        would keep the weights of the base.
        """
        model = self.model if model is None else model
        if not isinstance(model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved, found = type(model).from_pretrained(
            resume_from_checkpoint, dtype=model.dtype, local_files_only=True, output_loading_info=True
        )
        if wrong := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[kind]]:
            raise RuntimeError(
                tr(
                    "{resume_from_checkpoint} does not hold this model: {names}.",
                    resume_from_checkpoint=resume_from_checkpoint,
                    names=", ".join(map(str, wrong[:5])),
                )
            )
        model.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's; UserError for a checkpoint of bf16 weights whose optimizer had no Kahan summation yet."""
        super()._load_optimizer_and_scheduler(checkpoint)
        kahan = self.optimizer_cls_and_kwargs is not None
        if checkpoint and kahan and not all("kahan_sum" in group for group in self.optimizer.param_groups):
            raise UserError(
                tr(
                    "{checkpoint} was trained with an AdamW that rounds most updates of bf16 "
                    "weights away: start again with --resume never.",
                    checkpoint=checkpoint,
                )
            )

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Mean loss of the validation set, in nats per label token."""
        model = self.model_wrapped
        model.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.args.device)
        tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        for batch in progress(dataloader, what=description.lower(), unit="batches"):
            batch = self._prepare_inputs(batch)
            num_label_tokens = (batch["labels"] != IGNORED).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = model(**batch).loss
            loss_sum += torch.where(
                num_label_tokens > 0, loss.double() * num_label_tokens, 0.0
            )  # an empty pack's mean is 0 / 0
            tokens += num_label_tokens
        total_loss, total_tokens = sum_over_ranks([loss_sum.item(), float(tokens.item())], self.args.device)
        model.train()
        metrics = {f"{metric_key_prefix}_loss": total_loss / total_tokens}
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))


def build_trainer(
    model: torch.nn.Module,
    tokenizer,
    arguments: TrainingArguments,
    train_set: PackedDataset,
    validation_set: PackedDataset | None,
    callbacks: list[TrainerCallback],
    saving: SavingOptions | None = None,
) -> PackTrainer:
    """PackTrainer with the project's own log line and progress bar.

    `callbacks` are called in their order; `saving` is left out where nothing will be saved.
    """
    if validation_set is None and arguments.eval_strategy != IntervalStrategy.NO:
        say(tr("the data has no validation records: no validation loss is computed, and the last weights are kept"))
        arguments.eval_strategy = IntervalStrategy.NO
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        gather_by_layer(model, deepspeed_config(arguments))
    trainer = PackTrainer(
        model=model,
        args=arguments,
        data_collator=pack_collator(tokenizer.pad_token_id, train_set.pack_length),
        train_dataset=train_set,
        eval_dataset=validation_set,
        processing_class=tokenizer,
        callbacks=callbacks,
        saving=saving,
        optimizer_cls_and_kwargs=choose_optimizer(model, arguments),
    )
    say(optimizer_report(model, arguments))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
