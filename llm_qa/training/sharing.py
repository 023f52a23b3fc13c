"""On paper: what each strategy keeps on a GPU and sends between GPUs, before anything is run.

ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054, sections 3 (memory, K = 12 bytes of Adam a weight in mixed precision)
and 7 (communication). Activations, buffers and the allocator's rest come on top and depend on the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.config import Recipe

GPUS = (1, 2, 8, 64)
NF4_BYTES = 4 / 8
SCALE_BITS, DOUBLE_QUANT_BITS = 32 / 64, 8 / 64 + 32 / (64 * 256)  # a weight; Dettmers et al. 2023, section 3


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
    scales = (DOUBLE_QUANT_BITS if recipe.double_quant else SCALE_BITS) / 8
    return sizes.linear * (NF4_BYTES + scales) + sizes.other * wide


def trained_bytes(recipe: Recipe) -> tuple[int, int]:
    """(bytes of a trained weight and its gradient, bytes of Adam) a weight, without DeepSpeed."""
    width = 4 if recipe.method == "lora" or recipe.base_precision == "fp32" else 2
    small = "8bit" in recipe.training.get("optim", "")
    return 2 * width, 2 if small else 2 * width


def memory_per_gpu(recipe: Recipe, sizes: Sizes, stage: int, gpus: int) -> float:
    """Bytes of weights, gradients and optimizer on each of `gpus` GPUs. Stage 0 is one process or DDP.

    Under ZeRO what trains is kept in 16 bits with fp32 masters: 2 + 2 bytes and K = 12 (6 with an 8-bit Adam).
    """
    frozen = weight_bytes(recipe, sizes) if recipe.method == "lora" else 0.0
    if stage == 0:
        pair, adam = trained_bytes(recipe)
        return frozen + sizes.trained * (pair + adam)
    adam = 6 if "8bit" in recipe.training.get("optim", "") else 12
    if stage == 2:
        return frozen + sizes.trained * (2 + (2 + adam) / gpus)
    return (frozen + sizes.trained * (4 + adam)) / gpus


def traffic_per_step(recipe: Recipe, sizes: Sizes, stage: int, gpus: int, passes: int) -> float:
    """Bytes that each GPU sends in an update of `passes` forward passes.

    DDP's all-reduce and ZeRO-2's reduce-scatter with all-gather send 2 numbers a trained weight; ZeRO-3 gathers all
    weights for the forward and again for the backward pass of every micro-batch, and reduce-scatters the gradients.
    """
    if gpus == 1:
        return 0.0
    share = (gpus - 1) / gpus
    if stage == 0:
        return share * 2 * sizes.trained * trained_bytes(recipe)[0] / 2
    if stage == 2:
        return share * sizes.trained * (2 * passes + 2)  # gradients each pass, weights once
    weights = weight_bytes(recipe, sizes) if recipe.method == "lora" else 0.0
    return share * passes * (2 * (weights + 2 * sizes.trained) + 2 * sizes.trained)


def sharing_rows(recipe: Recipe, sizes: Sizes) -> list[list[str]]:
    """Strategy and numbers of GPUs -> GiB a GPU and GiB sent an update, as table rows."""
    rows = []
    for name, stage in (("one GPU or DDP", 0), ("ZeRO-2", 2), ("ZeRO-3", 3)):
        cells = []
        for gpus in GPUS:
            passes = max(1, recipe.global_batch_size // (recipe.micro_batch_size * gpus))
            memory = memory_per_gpu(recipe, sizes, stage, gpus) / 2**30
            sent = traffic_per_step(recipe, sizes, stage, gpus, passes) / 2**30
            cells.append(f"{memory:,.1f} / {sent:,.2f}")
        rows.append([name, *cells])
    return rows
