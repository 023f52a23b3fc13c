"""The choice of optimizer: Trainer's own, or for bf16 weights one that does not lose its updates to rounding.

A bf16 number has eight significant bits: near 0.02 its neighbours are 1.2e-4 apart, so an Adam update at a learning
rate of 1e-5 is rounded away. Kahan summation keeps what was rounded off in a second bf16 number for each weight and
adds it to the next update (https://optimi.benjaminwarner.dev/kahan_summation). DeepSpeed needs none of this: it keeps
fp32 masters of 16-bit weights. Why not stochastic rounding (torchao): it draws from torch's generator, so DDP
replicas would diverge as soon as one process draws a different number than the others.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.language import tr
from llm_qa.training.strategy import Strategy

ADAMW = ("adamw_torch", "adamw_torch_fused")  # the names that mean plain AdamW
# Adam's second moment is a bf16 number too. An update lowers it by at most the share 1 - beta2, which is rounded away
# where that is below half the spacing of bf16 numbers, 2**-8 at most: with Trainer's 0.999 it can never decrease.
SLOWEST_BETA2 = 1 - 2**-8
BETA2 = 0.99  # torch-optimi's own default
HALF_SPACING = 2**-9  # the smallest relative half spacing of bf16: a smaller relative change is always rounded away


def keeps_bf16(recipe: Recipe) -> bool:
    """True where every weight is trained and kept in bf16 (16-bit full training in fp16 is refused elsewhere)."""
    return recipe.method == "full" and recipe.base_precision in ("bf16", "16bit")


def optimizer_defaults(recipe: Recipe) -> dict[str, Any]:
    """Optimizer settings for a recipe that does not give them; the same for every strategy."""
    return {"adam_beta2": BETA2} if keeps_bf16(recipe) else {}


def check_optimizer(recipe: Recipe, strategy: Strategy) -> None:
    """UserError for an `optim` that would lose its updates in bf16 weights, where DeepSpeed keeps no fp32 masters."""
    optim = recipe.training.get("optim", ADAMW[0])
    if keeps_bf16(recipe) and not strategy.deepspeed and optim not in ADAMW:
        raise UserError(
            tr(
                "optim {optim} would round most of its updates of bf16 weights away; only AdamW "
                "has Kahan summation against that here: leave out --optim, set --base-precision to "
                "fp32, or use accelerate_configs/zero2.yaml or zero3.yaml, which keep fp32 masters.",
                optim=optim,
            )
        )


def trained_dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    """Dtypes of the trained weights."""
    return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}


def compensated(model: torch.nn.Module, arguments: TrainingArguments) -> bool:
    """True where bf16 weights train without DeepSpeed's fp32 masters, and so with Kahan summation."""
    return torch.bfloat16 in trained_dtypes(model) and getattr(arguments, "deepspeed_plugin", None) is None


def choose_optimizer(
    model: torch.nn.Module, arguments: TrainingArguments
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """Trainer's `optimizer_cls_and_kwargs`: AdamW with Kahan summation for bf16 weights; None for Trainer's choice.

    Its states are two moments and the compensation, in the dtype of their weight; fp32 weights among them are updated
    as usual. Checkpoints keep them in optimizer.pt like any other optimizer's.
    """
    if not compensated(model, arguments):
        return None
    from optimi import AdamW

    return AdamW, {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "kahan_sum": True,
    }


def optimizer_report(model: torch.nn.Module, arguments: TrainingArguments) -> str:
    """The line that says which optimizer is used and why, and which settings have no effect in bf16."""
    name = getattr(arguments.optim, "value", arguments.optim)
    if not compensated(model, arguments):
        if getattr(arguments, "deepspeed_plugin", None) is None:
            return tr("optimizer: {name}", name=name)
        if trained_dtypes(model) & {torch.bfloat16, torch.float16}:
            return tr("optimizer: {name}, partitioned by DeepSpeed, with fp32 masters of 16-bit weights", name=name)
        return tr("optimizer: {name}, partitioned by DeepSpeed", name=name)
    line = tr(
        "optimizer: AdamW with Kahan summation (torch-optimi), as plain AdamW's updates of bf16 weights would be "
        "rounded away; adam_beta2 {beta2:g}",
        beta2=arguments.adam_beta2,
    )
    if arguments.adam_beta2 > SLOWEST_BETA2:
        line += tr(", with which a second moment in bf16 cannot decrease (set --adam-beta2 {beta2})", beta2=BETA2)
    decay = arguments.learning_rate * arguments.weight_decay
    if 0 < decay < HALF_SPACING:
        line += tr(
            "; weight_decay {weight_decay:g} has no effect: bf16 rounds a change of {change:.0e} away",
            weight_decay=arguments.weight_decay,
            change=decay,
        )
    return line
