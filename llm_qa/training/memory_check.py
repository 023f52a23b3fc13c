"""Whether a run fits, before weights are read: into the GPUs, into the machine's memory, and with which micro-batch.

The bytes are those of `make plan` (planning/memory.py, planning/footprint.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.language import tr
from llm_qa.models.fast.choice import reason_of_machine
from llm_qa.models.precision import BF16_CAPABILITY
from llm_qa.planning.footprint import COPIES, MOST_TOKENS, Work, least_peak, peak_by_part, usable_bytes
from llm_qa.planning.memory import Sizes, host_bytes
from llm_qa.training.strategy import Strategy, micro_batch_size


@dataclass(frozen=True)
class Layers:
    """A model's number of layers, hidden size and vocabulary size, and whether it takes the plain path."""

    number: int
    d_model: int
    vocabulary: int
    plain: bool = False


def takes_plain_path(recipe: Recipe, model_type: str, capability: tuple[int, int] | None, stage: int) -> bool:
    """Whether it is known before the model is loaded that no fast path, which needs less, is taken (None: any GPU).

    Those of other architectures than GPT-NeoX train LoRA alone, and not under ZeRO-3 (`stage`).
    """
    if reason_of_machine(recipe, capability or BF16_CAPABILITY):
        return True
    return model_type != "gpt_neox" and (recipe.method == "full" or stage == 3 or not recipe.pack_length)


def offload_of(strategy: Strategy) -> str:
    """The strategy's offload, one of memory.OFFLOADS."""
    return "all" if strategy.offload_weights else "optimizer" if strategy.offload_optimizer else ""


def least_bytes(recipe: Recipe, sizes: Sizes, layers: Layers, strategy: Strategy, micro: int) -> float:
    """Bytes of each GPU that a pass of `micro` sequences cannot do without.

    Every layer is recomputed, but where the fast path was asked to recompute none.
    """
    share, length = recipe.global_batch_size // strategy.processes, recipe.pack_length or recipe.max_length
    shapes = (layers.number, layers.d_model, layers.vocabulary, micro * length, layers.number)
    work = Work(*shapes, passes=max(1, share // micro), plain=layers.plain)
    shared = (strategy.zero_stage, strategy.processes, offload_of(strategy))
    if recipe.recompute != "none" or layers.plain or strategy.zero_stage == 3:
        return sum(least_peak(recipe, sizes, work, *shared).values())
    parts = peak_by_part(recipe, sizes, replace(work, recomputed=0), *shared)
    return sum(parts.values()) - parts.get(COPIES, 0.0)  # which is kept only where it fits


def needed_host_bytes(recipe: Recipe, sizes: Sizes, strategy: Strategy) -> float:
    """Bytes of this machine's memory that its processes take."""
    return host_bytes(recipe, sizes, offload_of(strategy), strategy.processes_here, strategy.machines)


def free_host_bytes() -> int:
    """Bytes of CPU memory that are free, or that the container's limit still allows."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    limit, used, kinds = group / "memory.max", group / "memory.current", group / "memory.stat"
    if all(path.is_file() for path in (limit, used, kinds)) and (most := limit.read_text().strip()) != "max":
        held = dict(line.split() for line in kinds.read_text().splitlines())
        files_read = int(held.get("active_file", 0)) + int(held.get("inactive_file", 0))  # dropped when needed
        free = min(free, int(most) - int(used.read_text()) + files_read)
    return max(0, free)


def gpu_total_bytes() -> int | None:
    """Bytes of this process's GPU; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def check_memory(
    recipe: Recipe,
    sizes: Sizes,
    layers: Layers,
    strategy: Strategy,
    gpu: int | None,
    host: int,
    *,
    auto: bool = False,
) -> None:
    """Raise UserError for a run that does not fit GPUs of `gpu` bytes, or `host` bytes of free CPU memory.

    With `auto` the micro-batch may still become smaller. The message has the memory needed, the memory available, and
    what would fit.
    """
    needed = needed_host_bytes(recipe, sizes, strategy)
    if (gpu is not None or offload_of(strategy)) and needed > host:
        less = replace(strategy, offload_weights=False)
        if strategy.offload_weights and needed_host_bytes(recipe, sizes, less) <= host:
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
    if gpu is None:
        return
    now = micro_batch_size(recipe, strategy.processes)
    micros = [now, *smaller_micro_batches(recipe, strategy)] if auto else [now]
    needed = min(least_bytes(recipe, sizes, layers, strategy, micro) for micro in micros)
    if needed > usable_bytes(gpu):
        raise UserError(
            tr(
                "Weights, gradients, optimizer and activations would take at least {needed} on each GPU with {how}, "
                "and this one has {total}, of which {usable} can be used: use {helps}.",
                needed=in_gib(needed),
                how=strategy if strategy.processes > 1 else strategy.shown,
                total=in_gib(gpu),
                usable=in_gib(usable_bytes(gpu)),
                helps=tr(" or ").join(what_fits(recipe, sizes, layers, strategy, gpu)),
            )
        )


def smaller_micro_batches(recipe: Recipe, strategy: Strategy) -> Iterator[int]:
    """Those below the recipe's that divide a process's share of the global batch, the largest first."""
    share = recipe.global_batch_size // strategy.processes
    yield from (n for n in range(micro_batch_size(recipe, strategy.processes) - 1, 0, -1) if share % n == 0)


def in_gib(count: float) -> str:
    """A number of bytes as text in GiB."""
    return f"{count / 2**30:,.1f} GiB"


def what_fits(recipe: Recipe, sizes: Sizes, layers: Layers, strategy: Strategy, gpu: int) -> list[str]:
    """Changes that would fit GPUs of `gpu` bytes.

    First a smaller pass; then ZeRO-3 on the fewest GPUs, an 8-bit optimizer, LoRA, a quantised base.
    """
    usable = usable_bytes(gpu)
    if recipe.recompute == "none":
        recipe = replace(recipe, recompute="auto")
        if least_bytes(recipe, sizes, layers, strategy, micro_batch_size(recipe, strategy.processes)) <= usable:
            return ["--recompute auto"]
    for micro in smaller_micro_batches(recipe, strategy):
        if least_bytes(recipe, sizes, layers, strategy, micro) <= usable:
            return [tr("--micro-batch-size {half} (or --auto-micro-batch, which finds it)", half=micro)]
    helps, before = [], 0
    for optim, flag in ((recipe.training.get("optim", ""), ""), ("adamw_8bit", " with --optim adamw_8bit")):
        other = replace(recipe, training={**recipe.training, "optim": optim})
        fewest = before
        for number in (2, 4, 8, 16, 32, 64):
            shared = Strategy(number, zero_stage=3)
            micro = micro_batch_size(other, number)
            if least_bytes(other, sizes, layers, shared, micro) <= usable:
                fewest = number
                break
        if fewest != before:
            helps.append(tr("accelerate_configs/zero3.yaml on {fewest} such GPUs{flag}", fewest=fewest, flag=flag))
        before = fewest
    return [*helps, "--method lora" if recipe.method == "full" else "--base-precision nf4"]


def largest_micro_batch(recipe: Recipe, sizes: Sizes, layers: Layers, strategy: Strategy, gpu: int) -> int:
    """The largest micro-batch that fits in a GPU of `gpu` bytes under ZeRO-3 without changing the global batch.

    Every pass gathers all weights twice, so fewer passes per update mean less communication. At least the recipe's
    micro-batch, or the nearest below it that divides a process's share of the global batch; no pass is longer than
    those that were measured.
    """
    share, length = recipe.global_batch_size // strategy.processes, recipe.pack_length or recipe.max_length
    usable = usable_bytes(gpu)
    for micro in range(min(share, MOST_TOKENS // length), 0, -1):
        if share % micro == 0 and least_bytes(recipe, sizes, layers, strategy, micro) <= usable:
            return max(micro, micro_batch_size(recipe, strategy.processes))
    return micro_batch_size(recipe, strategy.processes)
