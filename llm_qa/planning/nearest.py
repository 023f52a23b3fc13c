"""Where a run does not fit: the way of `make plan` nearest to it that fits the same GPUs."""

from __future__ import annotations

from dataclasses import replace

from llm_qa.config.recipe import Recipe
from llm_qa.language import tr
from llm_qa.models.shapes import SHAPES
from llm_qa.planning.known_gpus import Gpu
from llm_qa.planning.ways import RECIPES, Job, all_plans
from llm_qa.training.strategy import Strategy


def nearest_that_fits(recipe: Recipe, strategy: Strategy, gpu: Gpu | None, gpu_bytes: int, host_bytes: int) -> str:
    """A clause with the way, its GiB of a GPU and its command; "" for unknown GPUs or models, or where none fits.

    `gpu_bytes` is the memory of each GPU, `host_bytes` what is free of the machine's. Ways that train the same weights
    (all, or LoRA's) come first, then the fastest; those with offload come last.
    """
    shape = SHAPES.get(recipe.model)
    if gpu is None or shape is None or shape.model_type != "gpt_neox" or not RECIPES.is_dir():
        return ""
    here = replace(gpu, gib=gpu_bytes / 2**30)
    job = Job(recipe.model, here, strategy.processes // strategy.machines, strategy.machines, tokens=1, epochs=1)
    fitting = [plan for plan in all_plans(job) if plan.fits and plan.host_gib * 2**30 <= host_bytes]
    if not fitting:
        return ""
    trains_all = recipe.method == "full"
    best = max(
        fitting,
        key=lambda plan: (
            not plan.way.offload,
            plan.way.recipe.startswith("full") == trains_all,
            plan.tokens_per_second,
        ),
    )
    return tr(
        "the nearest that fits here is {way}, {where} ({gib:,.1f} GiB): {command}",
        way=best.way.name,
        where=best.way.where,
        gib=best.gib,
        command=best.command,
    )
