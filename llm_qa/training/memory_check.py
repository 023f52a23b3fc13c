"""Estimates before weights are read whether a run fits: into GPU memory, into CPU memory with offload, per micro-batch.

The sizes of weights, gradients and optimizer states are exact (memory.py); that of activations is an estimate, which
--auto-micro-batch corrects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.language import tr
from llm_qa.planning.footprint import LIVE_WEIGHTS, plain_pass_bytes
from llm_qa.planning.memory import OFFLOADED_OPTIMIZER, Sizes, memory_per_gpu, weight_bytes
from llm_qa.training.strategy import Strategy, micro_batch_size

KEPT_FREE = 0.08  # share of a GPU's memory left to fragmentation, NCCL and cuBLAS


@dataclass(frozen=True)
class Width:
    """A model's number of layers, hidden size and vocabulary size."""

    layers: int
    d_model: int
    vocabulary: int


def gpu_bytes(recipe: Recipe, sizes: Sizes, strategy: Strategy) -> float:
    """Bytes of weights, gradients and optimizer states on each GPU, without those that are offloaded."""
    whole = memory_per_gpu(recipe, sizes, strategy.zero_stage, strategy.processes)
    if strategy.offload_optimizer:
        whole = weight_bytes(recipe, sizes) / (strategy.processes if strategy.zero_stage == 3 else 1)
    return 0.0 if strategy.offload_weights else whole


def host_bytes(recipe: Recipe, sizes: Sizes, strategy: Strategy) -> float:
    """Bytes that all processes of one machine offload to CPU memory."""
    share = strategy.processes_here / strategy.processes
    optimizer = sizes.trained * OFFLOADED_OPTIMIZER if strategy.offload_optimizer else 0.0
    return share * (optimizer + (weight_bytes(recipe, sizes) if strategy.offload_weights else 0.0))


def pass_bytes(width: Width, tokens: int) -> float:
    """Bytes that a pass over `tokens` needs under ZeRO-3 besides gpu_bytes: layers' inputs, one layer, logits."""
    return LIVE_WEIGHTS + plain_pass_bytes(width.layers, width.d_model, width.vocabulary, tokens)


def free_host_bytes() -> int:
    """Bytes of CPU memory that are free, or that the container's limit still allows."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return max(0, free)


def gpu_total_bytes() -> int | None:
    """Bytes of this process's GPU; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def check_memory(recipe: Recipe, sizes: Sizes, strategy: Strategy, gpu: int | None, host: int) -> None:
    """Raise UserError for a run that cannot fit in GPUs of `gpu` bytes, or in `host` bytes of free CPU memory.

    The message has the memory needed, the memory available, and what would fit.
    """
    needed = host_bytes(recipe, sizes, strategy)
    if needed > host:
        less = replace(strategy, offload_weights=False)
        if strategy.offload_weights and host_bytes(recipe, sizes, less) <= host:
            helps = tr("accelerate_configs/zero3_optimizer_offload.yaml, which leaves the weights on the GPUs")
        else:
            helps = tr("machines with more memory, more of them, or --method lora")
        raise UserError(
            tr(
                "{name} would keep {needed} in this machine's memory, of which {free} are free: use {helps}.",
                name=strategy.shown,
                needed=in_gib(needed),
                free=in_gib(host),
                helps=helps,
            )
        )
    needed = gpu_bytes(recipe, sizes, strategy)
    if gpu is not None and needed > gpu:
        how = strategy if strategy.processes > 1 else strategy.shown
        raise UserError(
            tr(
                "Weights, gradients and optimizer would take {needed} on each GPU with "
                "{how}, and this one has {total}: use {helps}.",
                needed=in_gib(needed),
                how=how,
                total=in_gib(gpu),
                helps=tr(" or ").join(what_fits(recipe, sizes, gpu)),
            )
        )


def in_gib(count: float) -> str:
    """A number of bytes as text in GiB."""
    return f"{count / 2**30:,.1f} GiB"


def what_fits(recipe: Recipe, sizes: Sizes, gpu: int) -> list[str]:
    """Changes that would fit: ZeRO-3 on the fewest GPUs of `gpu` bytes, an 8-bit optimizer, LoRA, a quantised base."""
    helps, before = [], 0
    for optim, flag in ((recipe.training.get("optim", ""), ""), ("adamw_8bit", " with --optim adamw_8bit")):
        other = replace(recipe, training={**recipe.training, "optim": optim})
        fit = (n for n in (2, 4, 8, 16, 32, 64) if memory_per_gpu(other, sizes, 3, n) < (1 - KEPT_FREE) * gpu)
        fewest = next(fit, before)
        if fewest != before:
            helps.append(tr("accelerate_configs/zero3.yaml on {fewest} such GPUs{flag}", fewest=fewest, flag=flag))
        before = fewest
    return [*helps, "--method lora" if recipe.method == "full" else "--base-precision nf4"]


def largest_micro_batch(recipe: Recipe, sizes: Sizes, width: Width, strategy: Strategy, gpu: int) -> int:
    """The largest micro-batch that fits in a GPU of `gpu` bytes under ZeRO-3 without changing the global batch.

    Every pass gathers all weights twice, so fewer passes per update mean less communication. At least the recipe's
    micro-batch, or the nearest below it that divides a process's share of the global batch.
    """
    room = (1 - KEPT_FREE) * gpu - gpu_bytes(recipe, sizes, strategy)
    length = recipe.pack_length or recipe.max_length
    share = recipe.global_batch_size // strategy.processes
    fit = [n for n in range(share, 0, -1) if share % n == 0 and pass_bytes(width, n * length) <= room]
    return max([*fit[:1], micro_batch_size(recipe, strategy.processes)])
