"""Which parts of the fast path a run uses and how many layers it recomputes: plan, install, report with the reason.

Planning runs one layer on the GPU and leaves the model as it was; only install() changes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from transformers import GPTNeoXForCausalLM

from llm_qa.config.recipe import Recipe
from llm_qa.language import tr
from llm_qa.models.fast.budget import MemoryBudget, layers_to_recompute, measure_memory_budget
from llm_qa.models.fast.choice import (
    FastPath,
    fp8_unless,
    plain_path,
    products_as_stored,
    reason_of_difference,
    reason_of_machine,
    reason_of_widths,
    say_that_it_is_tried,
)
from llm_qa.models.fast.decoder_plan import choose_decoder_path
from llm_qa.models.fast.model import FastNeoX
from llm_qa.models.fast.report import Plan, report
from llm_qa.models.fast.sharded import ShardedNeoX
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.precision import SHORT, Precision
from llm_qa.planning import this_gpu
from llm_qa.planning.footprint import copy_fits

OFFLOAD_BELOW = 3  # with less than so many times its size free, the embedding is offloaded before a layer is measured
GRAPH_POOL_WASTE = 0.1  # share of the CUDA graphs' memory pool that stays unused: 14.3 GiB were reserved for 12.9


def reason_against(model: torch.nn.Module, recipe: Recipe, capability: tuple[int, int] | None) -> str | None:
    """Why a GPT-NeoX takes the plain path; None where the fast path is valid."""
    if reason := reason_of_machine(recipe, capability):
        return reason
    config = model.config
    if config.hidden_dropout or config.attention_dropout:
        return tr("the model's own dropout is on")
    if not (config.use_parallel_residual and config.hidden_act == "gelu" and config.attention_bias):
        return tr("this GPT-NeoX has a different structure from polyglot-ko")
    linears = linear_layers(model)
    if recipe.method == "lora" and not all(hasattr(layer, "lora_A") for layer in adapted_layers(linears)):
        return tr("--lora-targets leaves linear layers without LoRA")
    return None


def adapted_layers(linears: dict[str, torch.nn.Module]) -> list[torch.nn.Module]:
    """The linear layers of a model as peft wraps them, LoRA's own small ones left out."""
    return [layer for name, layer in linears.items() if ".base_layer" not in name and ".lora_" not in name]


def choose_fast_path(
    model: torch.nn.Module,
    recipe: Recipe,
    precision: Precision,
    tokens: int,
    max_label_tokens: int,
    zero_stage: int,
    capability: tuple[int, int] | None,
    replaced: bool = False,
    processes: int = 1,
) -> FastPath:
    """Plan the fast path for `model` (plain or with LoRA), and install it where it is valid.

    A forward pass has `tokens` tokens, of which at most `max_label_tokens` are label tokens. `replaced`: gradients come
    while activations go (`gradients_replace_activations`). Where the plain path is chosen, the model is left as it was.
    Raises UserError where compute_dtype fp8 was asked for and is not possible.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    measure = partial(  # of a fast path
        measure_memory_budget,
        model=model,
        recipe=recipe,
        zero_stage=zero_stage,
        replaced=replaced,
        processes=processes,
    )
    if not isinstance(causal, GPTNeoXForCausalLM):
        shape = tokens, max_label_tokens
        return choose_decoder_path(causal, recipe, precision, shape, zero_stage, capability, measure)
    if reason := reason_against(causal, recipe, capability):
        return plain_path(reason, recipe, precision)
    if zero_stage == 3:  # no rank holds a whole weight that could be converted to fp8 once
        precision = dataclasses.replace(precision, fp8_products=precision.fp8_weights)
    fast = (ShardedNeoX if zero_stage == 3 else FastNeoX)(
        causal,
        precision.compute,
        tokens,
        max_label_tokens,
        compiled=True,
        cuda_graphs=recipe.method == "lora" and not zero_stage,
    )
    say_that_it_is_tried()
    try:
        if zero_stage == 3:
            plan = plan_sharded(fast, recipe, precision)
        else:
            plan = make_plan(fast, recipe, precision, partial(measure, fast))
    except Exception as error:
        if type(error).__name__ != "OutOfResources":  # by name, because Triton cannot be imported without a GPU
            raise
        size = SHORT[precision.compute]
        if recipe.method == "lora":
            size = tr("--lora-r {rank} in {dtype}", rank=recipe.lora_r, dtype=size)
        reason = tr(
            "the fast path's kernels for {size} need more shared memory or registers than this GPU has",
            size=size,
        )
        return plain_path(reason, recipe, precision)
    if plan.plain_path_reason:
        return plain_path(plan.plain_path_reason, recipe, precision)
    install(fast, plan)
    skipped = fast.skipped_flops(this_gpu.flops_per_token(1, recipe.method == "full"))
    return FastPath(True, report(fast, plan, precision), plan.recomputed, skipped, plan.fp8_products, plan.offloaded)


def make_plan(fast: FastNeoX, recipe: Recipe, precision: Precision, measure: Callable[[], MemoryBudget]) -> Plan:
    """Compare gradients, measure a layer's memory, choose; the model is left as it was, also after an error.

    Raises Triton's OutOfResources where a kernel does not fit the GPU.
    """
    try:
        return _make_plan(fast, recipe, precision, measure)
    finally:
        fast.restore()


def _make_plan(fast: FastNeoX, recipe: Recipe, precision: Precision, measure: Callable[[], MemoryBudget]) -> Plan:
    cuda_graphs = fast.cuda_graphs
    if this_gpu.free_memory_bytes()[0] < OFFLOAD_BELOW * fast.model.get_input_embeddings().weight.nbytes:
        fast.offload_to_cpu()
    if reason := reason_of_difference(fast.difference(), precision):
        return Plan(reason)
    fp8_products, products = choose_products(fast, recipe, precision)
    layers = len(fast.model.gpt_neox.layers)
    cached_bytes = fast.dequantized_bytes(fp8=fp8_products) if precision.nf4 or fp8_products else 0
    if cached_bytes and not precision.nf4:  # choose_products has checked that the copy fits
        fast.prepare(layers, fp8=True, dequantized=True)
    elif cached_bytes:  # a layer with cached weights is compiled apart: compile the kind that will probably be used
        likely = recipe.recompute != "all" and cached_bytes <= this_gpu.free_memory_bytes()[0] / 2
        fast.prepare(1, fp8=fp8_products, dequantized=likely)
    budget = measure()
    needed = layers * (budget.saved_bytes if recipe.recompute == "none" else budget.layer_input_bytes)
    cuda_graphs = cuda_graphs and not fast.offloaded
    available_beside_graphs = int((budget.available_bytes - budget.graph_bytes) * (1 - GRAPH_POOL_WASTE))
    short_of_memory = cuda_graphs and available_beside_graphs < needed
    if cuda_graphs and not short_of_memory:
        budget = dataclasses.replace(budget, available_bytes=available_beside_graphs)
    recomputed, why = layers_to_recompute(budget, recipe, layers)
    offloaded = fast.offloaded or (recomputed == layers and budget.available_bytes < layers * budget.layer_input_bytes)
    # Without the cache nf4 is dequantised for one layer at a time, which KEPT_FREE has room for.
    if precision.nf4 and (
        recipe.recompute == "all" or recomputed or cached_bytes > budget.available_bytes - layers * budget.saved_bytes
    ):
        cached_bytes = 0
    return Plan(
        recomputed=recomputed,
        why=why,
        cuda_graphs=cuda_graphs and not (short_of_memory or offloaded),
        short_of_memory=short_of_memory,
        offloaded=offloaded,
        fp8_products=fp8_products,
        dequantized_bytes=cached_bytes,
        products=products,
    )


def plan_sharded(fast: FastNeoX, recipe: Recipe, precision: Precision) -> Plan:
    """Compare; under ZeRO-3 all layers are recomputed, so there is nothing to choose."""
    if reason := reason_of_difference(fast.difference(), precision):
        return Plan(reason)
    layers = len(fast.model.gpt_neox.layers)
    why = tr("ZeRO-3 gathers their weights again for the backward pass")
    return Plan(recomputed=layers, why=why, products=SHORT[precision.compute])


def choose_products(fast: FastNeoX, recipe: Recipe, precision: Precision) -> tuple[bool, str]:
    """Whether frozen weights are rounded to fp8 for their products, and the report's words for the products.

    The first layer's gradients in fp8 are compared with the plain ones. Raises UserError where --compute-dtype fp8 was
    asked for and is not possible.
    """
    if precision.fp8_weights or not precision.fp8_products:
        return False, products_as_stored(precision)
    cached_bytes, free_bytes, difference = fast.dequantized_bytes(fp8=True), this_gpu.free_memory_bytes()[0], 0.0
    reason = reason_of_widths(fast.widths())
    if reason:
        pass
    elif not precision.nf4 and (
        not copy_fits(cached_bytes, free_bytes) or (recipe.recompute != "auto" and recipe.compute_dtype == "auto")
    ):
        reason = tr(
            "an fp8 copy of the {base} weights takes {gib:.1f} GiB, and --base-precision fp8 needs no copy",
            base=precision.base,
            gib=cached_bytes / 2**30,
        )
    else:
        fast.prepare(1, fp8=True, dequantized=not precision.nf4)
        difference = fast.difference()
        fast.prepared.clear()
    return fp8_unless(reason, difference, recipe, precision)


def install(fast: FastNeoX, plan: Plan) -> None:
    """Carry out the plan and replace the model's forward."""
    fast.recomputed = plan.recomputed
    if plan.offloaded:
        fast.offload_to_cpu()
    if plan.fp8_products or plan.dequantized_bytes:
        fast.prepare(len(fast.model.gpt_neox.layers), fp8=plan.fp8_products, dequantized=plan.dequantized_bytes > 0)
    fast.cuda_graphs = plan.cuda_graphs
    fast.install()
