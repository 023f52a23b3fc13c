"""How many layers the fast path recomputes in the memory that is there."""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.config.recipe import Recipe
from llm_qa.language import tr


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
