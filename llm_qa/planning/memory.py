"""On paper: what each strategy keeps on a GPU and sends between GPUs, before anything is run.

ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054, sections 3 (memory, K = 12 bytes of Adam a weight in mixed precision)
and 7 (communication). Activations, buffers and the allocator's rest come on top and depend on the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.config.recipe import Recipe
from llm_qa.language import later, tr

# The parts of a GPU's memory by the names that JSON holds; `tr` says them in the chosen language.
WEIGHTS, SCALES, LORA = later("weights"), later("scales of 4-bit weights"), "LoRA"
GRADIENTS, OPTIMIZER = later("gradients"), later("optimizer")
GPU_COUNTS = (1, 2, 8, 64)
NF4_BYTES = 4 / 8
SCALE_BITS, DOUBLE_QUANT_BITS = 32 / 64, 8 / 64 + 32 / (64 * 256)  # a weight; Dettmers et al. 2023, section 3

# CPU memory in bytes per trained weight under DeepSpeed's CPU AdamW: fp32 master weight and two moments, a fp32
# gradient for the update, and the 16-bit gradient that is accumulated over passes.
OFFLOADED_OPTIMIZER = 4 + 8 + 4 + 2
# CPU memory of a process that trains on a GPU: 1.5 GiB of its own, 0.4 of those that compile for it (measured: H200).
PROCESS_BYTES = 2 * 2**30
OFFLOADS = ("", "optimizer", "all")  # what ZeRO-3 keeps in the machine's memory; "all": the weights too


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights: in linear layers that nf4 packs, in everything else, and of those that train (LoRA's too)."""

    linear: int
    other: int
    trained: int


def weight_bytes(recipe: Recipe, sizes: Sizes) -> float:
    """Bytes of the base weights as the recipe keeps them (16 bits unless fp32), LoRA's not among them."""
    wide = 4 if recipe.base_precision == "fp32" else 2
    if recipe.base_precision != "nf4":
        return (sizes.linear + sizes.other) * wide
    return sizes.linear * NF4_BYTES + scale_bytes(recipe, sizes) + sizes.other * wide


def scale_bytes(recipe: Recipe, sizes: Sizes) -> float:
    """Bytes of what nf4 keeps beside its 4 bits to give weights their size back; 0 in other precisions."""
    if recipe.base_precision != "nf4":
        return 0.0
    return sizes.linear * (DOUBLE_QUANT_BITS if recipe.double_quant else SCALE_BITS) / 8


@dataclass(frozen=True)
class TrainedWeight:
    """Bytes that training keeps for a weight: itself, its gradient, what the optimizer keeps, an fp32 master too."""

    weight: int
    gradient: int
    optimizer: int


def trained_weight(width: int, optim: str, stage: int) -> TrainedWeight:
    """Bytes for each weight that trains, kept in `width` bytes (2 or 4), with an AdamW named `optim`.

    Stage 0 (one process or DDP): two moments as wide as the weight, and for 16-bit weights the compensation of what
    Kahan summation rounded off (`optimizer.py`). ZeRO: two moments and a master in fp32 (K = 12). An 8-bit Adam's
    moments take a byte each.
    """
    moments = 2 if "8bit" in optim else 8 if stage else 2 * width
    extra = 4 if stage else 2 if width == 2 else 0
    return TrainedWeight(width, width, moments + extra)


def of_recipe(recipe: Recipe, stage: int) -> TrainedWeight:
    """The same for a recipe: LoRA's weights are fp32, and under ZeRO all that trains is kept in 16 bits."""
    wide = stage == 0 and (recipe.method == "lora" or recipe.base_precision == "fp32")
    return trained_weight(4 if wide else 2, recipe.training.get("optim", ""), stage)


def checkpoint_bytes(width: int, optim: str, stage: int) -> int:
    """Bytes of a checkpoint for each weight that trains: the weight and the optimizer's states.

    DeepSpeed writes the weights once more, among the states of its engine.
    """
    kept = trained_weight(width, optim, stage)
    return kept.weight * (2 if stage else 1) + kept.optimizer


def states_by_part(recipe: Recipe, sizes: Sizes, stage: int, gpus: int, offload: str = "") -> dict[str, float]:
    """Part -> bytes on each of `gpus` GPUs of weights, nf4's scales, LoRA, gradients and optimizer.

    `stage` is ZeRO's, 0 for one process or DDP; `offload` is one of OFFLOADS.
    """
    kept, lora = of_recipe(recipe, stage), recipe.method == "lora"
    frozen, scales = (weight_bytes(recipe, sizes), scale_bytes(recipe, sizes)) if lora else (0.0, 0.0)
    weights = 1 if stage < 3 else 0 if offload == "all" else 1 / gpus
    states = 0 if offload else 1 / gpus if stage else 1
    parts = {
        WEIGHTS: weights * (frozen - scales + (0 if lora else sizes.trained * kept.weight)),
        SCALES: weights * scales,
        LORA: weights * sizes.trained * kept.weight if lora else 0.0,
        GRADIENTS: states * sizes.trained * kept.gradient,
        OPTIMIZER: states * sizes.trained * kept.optimizer,
    }
    return {name: count for name, count in parts.items() if count}


def memory_per_gpu(recipe: Recipe, sizes: Sizes, stage: int, gpus: int) -> float:
    """Bytes of weights, gradients and optimizer on each of `gpus` GPUs. Stage 0 is one process or DDP."""
    return sum(states_by_part(recipe, sizes, stage, gpus).values())


def host_bytes(recipe: Recipe, sizes: Sizes, offload: str, processes: int, machines: int) -> float:
    """Bytes of each machine's memory that `processes` of it take, without what the system can drop (files read).

    Each has its libraries; offload adds what it moves there. A model all of whose weights train is written from a copy
    in 16 bits, an adapter from one of a few MB.
    """
    offloaded = sizes.trained * OFFLOADED_OPTIMIZER if offload else 0.0
    offloaded += weight_bytes(recipe, sizes) if offload == "all" else 0.0
    written = 2.0 * (sizes.linear + sizes.other) if recipe.method == "full" else 0.0
    return processes * PROCESS_BYTES + offloaded / machines + written


@dataclass(frozen=True)
class Traffic:
    """What a GPU sends in an update of `passes`: `sent` bytes.

    Under ZeRO-3 each pass gathers `weights` bytes twice (whole, of which a GPU lacks its share no more) and shares out
    `gradients`.
    """

    sent: float
    passes: int
    weights: float = 0.0
    gradients: float = 0.0


def traffic_of_update(recipe: Recipe, sizes: Sizes, stage: int, gpus: int, passes: int) -> Traffic:
    """The bytes that each GPU sends in an update of `passes` forward passes.

    DDP's all-reduce and ZeRO-2's reduce-scatter with all-gather send 2 numbers a trained weight; ZeRO-3 gathers all
    weights for the forward and again for the backward pass of every micro-batch, and reduce-scatters the gradients.
    """
    share = (gpus - 1) / gpus
    if stage == 0:
        return Traffic(share * 2 * sizes.trained * of_recipe(recipe, stage).gradient, passes)
    if stage == 2:
        return Traffic(share * sizes.trained * (2 * passes + 2), passes)  # gradients each pass, weights once
    gradients = 2.0 * sizes.trained
    weights = gradients + (weight_bytes(recipe, sizes) if recipe.method == "lora" else 0.0)
    return Traffic(share * passes * (2 * weights + gradients), passes, weights, gradients)


def sharing_rows(recipe: Recipe, sizes: Sizes) -> list[list[str]]:
    """Strategy and numbers of GPUs -> GiB a GPU and GiB sent an update, as table rows."""
    rows = []
    for name, stage in ((later("one GPU or DDP"), 0), ("ZeRO-2", 2), ("ZeRO-3", 3)):
        cells = []
        for gpus in GPU_COUNTS:
            passes = max(1, recipe.global_batch_size // (recipe.micro_batch_size * gpus))
            memory = memory_per_gpu(recipe, sizes, stage, gpus) / 2**30
            sent = traffic_of_update(recipe, sizes, stage, gpus, passes).sent / 2**30
            cells.append(f"{memory:,.1f} / {sent:,.2f}")
        rows.append([tr(name), *cells])
    return rows
