"""How many layers the fast path recomputes in the memory that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from llm_qa.config.recipe import Recipe
from llm_qa.language import tr
from llm_qa.planning import this_gpu
from llm_qa.planning.footprint import KEPT_FREE, engine_bytes, room_for_activations
from llm_qa.planning.memory import trained_weight

LAST_LAYER_INPUTS = 3  # the last layer is not compiled and saves about so many layer inputs more than the others


class MeasuresLayer(Protocol):
    """A fast path whose layers can be measured."""

    def measure_layer(self) -> tuple[int, int, int]:
        """Bytes on the GPU: saved by a layer for its backward pass, needed by that pass besides, and of its input."""


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of GPU memory: available for the layers' saved activations, free before training, saved by one layer, of a
    layer's input, and needed by CUDA graphs on top.
    """

    available_bytes: int
    free_bytes: int
    saved_bytes: int
    layer_input_bytes: int
    graph_bytes: int


def layers_to_recompute(budget: MemoryBudget, recipe: Recipe, layers: int) -> tuple[int, str]:
    """How many layers are recomputed, as few as the memory allows, and the report's reason."""
    if recipe.recompute != "auto":
        return (layers if recipe.recompute == "all" else 0), f"--recompute {recipe.recompute}"
    available_bytes = budget.available_bytes - layers * budget.layer_input_bytes
    number = min(layers, max(0, layers - int(available_bytes // max(1, budget.saved_bytes - budget.layer_input_bytes))))
    saved, free = (size / 2**30 for size in (budget.saved_bytes, budget.free_bytes))
    why = tr("a layer saves {saved:.2f} GiB of activations and {free:.1f} GiB are free", saved=saved, free=free)
    return number, why


def measure_memory_budget(
    fast: MeasuresLayer,
    model: torch.nn.Module,
    recipe: Recipe,
    zero_stage: int = 0,
    replaced: bool = False,
    processes: int = 1,
) -> MemoryBudget:
    """One layer's measured need, and what is left beside gradients, the optimizer's states and the pass of a layer.

    The weights are on the GPU already; the engine's buffers (DDP's, of several `processes`, or ZeRO-2's) come later.
    ZeRO-2 divides gradients and states among the GPUs, which is not counted on. `replaced`: gradients come
    while activations go (`gradients_replace_activations`).
    """
    saved_bytes, passing, layer_input_bytes = fast.measure_layer()
    optim = str(recipe.training.get("optim", ""))
    gradients = optimizer = graphs = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            kept = trained_weight(parameter.element_size(), optim, zero_stage)
            gradients += parameter.numel() * kept.gradient
            optimizer += parameter.numel() * kept.optimizer
            graphs += parameter.numel() * 2 * kept.gradient  # the backward graph's gradients and their copies
    free_bytes, total = this_gpu.free_memory_bytes()
    beside = (
        free_bytes - engine_bytes(gradients, zero_stage, processes) - LAST_LAYER_INPUTS * layer_input_bytes - passing
    )
    available = int(room_for_activations(beside, optimizer, gradients, int(KEPT_FREE * total), replaced))
    return MemoryBudget(available, free_bytes, saved_bytes, layer_input_bytes, graphs)
