"""The parallel strategy of a run, read from what `accelerate launch` has set, and recipes that it cannot run.

The engine is torch's DistributedDataParallel or DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) without
changes. Everything here is decided before a weight is read.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError, is_main_process, say
from llm_qa.language import later, tr
from llm_qa.models.precision import Precision
from llm_qa.training.internals import gathered_weights

OFFLOAD_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")  # the only ones that accelerate maps to the same mathematics
TRUE = ("1", "true", "yes")


@dataclass(frozen=True)
class Strategy:
    """The number of processes, and what ZeRO partitions among them (stage 0: nothing; one process or DDP)."""

    processes: int = 1
    processes_here: int = 1
    machines: int = 1
    zero_stage: int = 0
    offload_weights: bool = False
    offload_optimizer: bool = False

    @property
    def deepspeed(self) -> bool:
        """True when DeepSpeed is the engine."""
        return self.zero_stage > 0

    @property
    def _words(self) -> tuple[str, str]:
        if not self.deepspeed:
            return "DDP" if self.processes > 1 else later("one process"), ""
        engine = f"ZeRO-{self.zero_stage}"
        if self.offload_weights:
            return engine, later(" with CPU offload")
        return engine, later(" with CPU offload of the optimizer") if self.offload_optimizer else ""

    @property
    def name(self) -> str:
        """Its common name, as files hold it: 'one process', 'DDP', 'ZeRO-3 with CPU offload'."""
        return "".join(self._words)

    @property
    def shown(self) -> str:
        """The same in the chosen language."""
        return "".join(map(tr, self._words))

    def __str__(self) -> str:
        if self.processes == 1 and not self.deepspeed:
            return self.shown
        processes = tr("{count} processes", count=self.processes) if self.processes > 1 else tr("1 process")
        machines = tr(" on {count} machines", count=self.machines) if self.machines > 1 else ""
        return f"{self.shown}, {processes}{machines}"


def read_strategy(environment: Mapping[str, str] = os.environ) -> Strategy:
    """The strategy that `accelerate launch` set up; UserError for one that this project does not run."""
    processes, here = int(environment.get("WORLD_SIZE", "1")), int(environment.get("LOCAL_WORLD_SIZE", "1"))
    strategy = Strategy(processes, here, machines=max(1, processes // max(1, here)))
    if environment.get("ACCELERATE_USE_FSDP", "").lower() in TRUE:
        raise UserError(
            tr(
                "The accelerate config asks for FSDP, which this project does not run: use "
                "accelerate_configs/zero3.yaml, which shares weights, gradients and optimizer "
                "states in the same way."
            )
        )
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in TRUE:
        return strategy
    path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not path:
        raise UserError(
            tr(
                "The accelerate config asks for DeepSpeed without a deepspeed_config_file: name "
                "one of ds_configs/ there, or use accelerate_configs/zero2.yaml, zero3.yaml or one "
                "of zero3's with offload."
            )
        )
    try:
        zero = json.loads(Path(path).read_text(encoding="utf-8")).get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            tr(
                "The DeepSpeed config {path} that the accelerate config names cannot be read "
                "({error}): start from the project's folder, or correct deepspeed_config_file.",
                path=path,
                error=error,
            )
        ) from None
    if stage not in (2, 3):
        raise UserError(
            tr(
                "The DeepSpeed config {path} asks for ZeRO stage {stage}: this project runs stages "
                "2 and 3 (and plain data parallelism with accelerate_configs/ddp.yaml).",
                path=path,
                stage=stage,
            )
        )

    def offloads(what: str) -> bool:
        return (zero.get(what) or {}).get("device", "none") != "none"

    return replace(
        strategy,
        zero_stage=stage,
        offload_weights=offloads("offload_param"),
        offload_optimizer=offloads("offload_optimizer"),
    )


def check_strategy(recipe: Recipe, strategy: Strategy, gpus: int | None) -> None:
    """Refuse a recipe that cannot run on a strategy, in one sentence with the flag to change, before anything is read.

    `gpus` is how many this machine has; None on a machine without.
    """
    accumulation_steps(recipe, strategy.processes)
    if gpus is not None and strategy.processes_here > gpus:
        raise UserError(
            tr(
                "{processes} processes were started on a machine with {here}: set --num_processes {all_gpus} of "
                "accelerate launch (NUM_GPUS={gpus} for make).",
                processes=strategy.processes_here,
                here=tr("{count} GPUs", count=gpus) if gpus > 1 else tr("1 GPU"),
                gpus=gpus,
                all_gpus=gpus * strategy.machines,
            )
        )
    if recipe.base_precision == "fp8" and strategy.deepspeed:
        raise UserError(
            tr(
                "base_precision fp8 with {name}: DeepSpeed casts all of a model to 16 bits, the "
                "scales of fp8 weights too: use accelerate_configs/ddp.yaml, or set "
                "--base-precision to nf4 or 16bit.",
                name=strategy.shown,
            )
        )
    if recipe.compute_dtype == "fp8" and strategy.zero_stage == 3:
        raise UserError(
            tr(
                "compute_dtype fp8 with {name}: no process holds a whole partitioned weight that "
                "could be rounded to fp8: set --compute-dtype to auto, or use "
                "accelerate_configs/ddp.yaml.",
                name=strategy.shown,
            )
        )
    if recipe.base_precision == "nf4" and strategy.offload_weights:
        raise UserError(
            tr(
                "base_precision nf4 with {name}: 4-bit weights cannot be offloaded to CPU memory, "
                "as their scales stay on the GPU: use accelerate_configs/zero3.yaml, or set "
                "--base-precision to 16bit.",
                name=strategy.shown,
            )
        )
    optimizer = recipe.training.get("optim", OFFLOAD_OPTIMIZERS[0])
    if strategy.offload_optimizer and optimizer not in OFFLOAD_OPTIMIZERS:
        raise UserError(
            tr(
                "optim {optimizer} with {name} would silently become plain Adam without decoupled "
                "weight decay: set --optim to {allowed}, which runs as DeepSpeed's CPU AdamW.",
                optimizer=optimizer,
                name=strategy.shown,
                allowed=OFFLOAD_OPTIMIZERS[0],
            )
        )


def micro_batch_size(recipe: Recipe, processes: int) -> int:
    """Sequences per forward pass of one process: the recipe's, or fewer where its share of the global batch is less."""
    return min(recipe.micro_batch_size, max(1, recipe.global_batch_size // processes))


def accumulation_steps(recipe: Recipe, processes: int) -> int:
    """Gradient accumulation steps, so that the global batch is the recipe's on any number of GPUs.

    Raises UserError when the global batch cannot be divided evenly among the processes.
    """
    at_once = micro_batch_size(recipe, processes) * processes
    if recipe.global_batch_size % at_once:
        raise UserError(
            tr(
                "global_batch_size {global_batch_size} is not a multiple of micro_batch_size "
                "{micro_batch_size} x {processes} processes: set --global-batch-size to a multiple "
                "of {at_once}.",
                global_batch_size=recipe.global_batch_size,
                micro_batch_size=recipe.micro_batch_size,
                processes=processes,
                at_once=at_once,
            )
        )
    return recipe.global_batch_size // at_once


def fit_precision(precision: Precision, strategy: Strategy) -> Precision:
    """Change the dtypes as ZeRO needs and print a line: one dtype for trained weights, 4-bit storage it can partition.

    ZeRO-3 flattens parameters of one dtype into one buffer, so packed 4-bit weights are stored in elements of the
    dtype of the others (`bnb_4bit_quant_storage`). Under 16-bit products DeepSpeed casts all weights to 16 bits and
    keeps fp32 master weights in the optimizer.
    """
    if not strategy.deepspeed:
        return precision
    cast = precision.compute != precision.weights and precision.compute != torch.float32
    if cast:
        say(
            tr(
                "{name}: weights are kept in {autocast}, with fp32 master weights of the trained ones",
                name=strategy.shown,
                autocast=precision.autocast,
            )
        )
    weights = precision.compute if cast else precision.weights
    return replace(precision, weights=weights, trains_in=weights, storage=weights if strategy.zero_stage == 3 else None)


def quiet_other_ranks() -> None:
    """Show loading bars only in the main process, and no deprecation warnings of libraries."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not is_main_process():
        logging.disable_progress_bar()


def start_engine(strategy: Strategy) -> None:
    """Let DeepSpeed join the process group that TrainingArguments opened (it partitions weights as they load)."""
    if strategy.deepspeed:
        import deepspeed

        for lock in compile_locks():
            say(
                tr(
                    "note: another process is compiling DeepSpeed's {name}, which this run waits for; if "
                    "none is (it was killed), delete {lock}",
                    name=lock.parent.name,
                    lock=lock,
                )
            )
        deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def compile_locks() -> list[Path]:
    """Locks of operations that are being compiled into torch's folder for them, or were when a process was killed.

    torch waits for such a file to go, without a word or an end (torch.utils.file_baton).
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return sorted(path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern))


def engine_report(trainer) -> dict:
    """The engine's class, ZeRO stage and number of processes, read from the engine itself."""
    engine = trainer.model_wrapped
    stage = engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else 0
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if is_distributed else 1
    return {"class": type(engine).__name__, "zero_stage": stage, "processes": processes}


def end_together(stop_watching: Callable[[], None] = lambda: None) -> None:
    """Wait for all ranks and close the process group: a rank that exits early can make the others fail.

    The watchdog runs during the wait, in which the main process may be saving for minutes. `stop_watching` stops it on
    every rank before the first one exits, which the others would take for dead.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        stop_watching()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def final_weights(trainer) -> dict[str, torch.Tensor]:
    """Name -> whole tensor of what a run has trained: all weights, or those of the adapter. Every rank must call it.

    Under ZeRO-3 the partitions are gathered on the main process; other ranks return their own partition.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = hasattr(model, "peft_config")
    if not (trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3):
        state = model.state_dict()
    else:
        state = gathered_weights(trainer, exclude_frozen=adapter)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in state.items() if not adapter or name in trained}
