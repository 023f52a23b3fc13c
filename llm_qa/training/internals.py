"""What training reads or sets inside Trainer and DeepSpeed for want of a public way; nothing else here does.

What it overrides of Trainer stands in `trainer.py` and `checkpoint/trainer_hooks.py`. tests/training/test_internals.py
checks all of it, and what other packages use, against the installed libraries: an upgrade fails there first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import Trainer, TrainingArguments


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Make Trainer take one of the GPUs that this process sees; without a launcher it would split batches over all."""
    arguments._n_gpu = 1


def loss_since_log(trainer: Trainer) -> tuple[float, int]:
    """(sum of this rank's losses since the last logged step, that step)."""
    return trainer._tr_loss.item(), trainer._globalstep_last_logged


def restore_loss_since_log(trainer: Trainer, loss: float, last_logged: int) -> None:
    """Let the next logged loss include `loss`, and average over the steps since `last_logged`."""
    trainer._tr_loss += loss
    trainer._globalstep_last_logged = last_logged


def deepspeed_config(arguments: TrainingArguments) -> dict[str, Any]:
    """The DeepSpeed config that the engine will be made from, to be read and changed before that."""
    return arguments.deepspeed_plugin.hf_ds_config.config


def load_universal(arguments: TrainingArguments) -> None:
    """Let DeepSpeed load the universal checkpoint beside the shares, which another number of processes wrote."""
    deepspeed_config(arguments)["checkpoint"] = {"load_universal": True}


def skip_bad_updates(optimizer: Any) -> None:
    """Let DeepSpeed's ZeRO optimizer skip an update of gradients that are not finite; others are left alone.

    Of bf16 gradients ZeRO-2 does so only when it is told.
    """
    if hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = True


def is_zero_optimizer(optimizer: Any) -> bool:
    """True for DeepSpeed's ZeRO optimizers, which know the norm of all gradients."""
    return hasattr(optimizer, "_global_grad_norm")


def had_bad_gradients(optimizer: Any) -> bool:
    """Whether the gradients of the last update of a ZeRO optimizer were not finite, the same answer on every rank."""
    return bool(optimizer.overflow) or not math.isfinite(float(optimizer._global_grad_norm or 0.0))


def gathered_weights(trainer: Trainer, *, exclude_frozen: bool) -> dict[str, torch.Tensor]:
    """Under ZeRO-3, name -> whole 16-bit tensor on the CPU of the main process; {} on the others. All must call it."""
    return trainer.deepspeed._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=exclude_frozen) or {}
