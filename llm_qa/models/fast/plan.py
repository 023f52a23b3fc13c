"""Which parts of the fast path a run uses and how many layers it recomputes: plan, install, report with the reason.

Planning runs one layer on the GPU and leaves the model as it was; only install() changes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers import GPTNeoXForCausalLM

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError, say
from llm_qa.language import tr
from llm_qa.models.fast.budget import MemoryBudget, layers_to_recompute
from llm_qa.models.fast.model import FastNeoX
from llm_qa.models.fast.ops.frozen_linear import FP8_WIDTH
from llm_qa.models.fast.report import Plan, report
from llm_qa.models.fast.sharded import ShardedNeoX
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.precision import BF16_CAPABILITY, SHORT, Precision
from llm_qa.planning.footprint import KEPT_FREE, copy_fits, engine_bytes, room_for_activations
from llm_qa.planning.memory import trained_weight
from llm_qa.planning.this_gpu import flops_per_token, free_memory_bytes

LAST_LAYER_INPUTS = 3  # the last layer is not compiled and saves about so many layer inputs more than the others
MAX_DIFFERENCE, MAX_DIFFERENCE_FP8 = 0.05, 0.2  # relative, of a layer's gradients from those of the plain path
OFFLOAD_BELOW = 3  # with less than so many times its size free, the embedding is offloaded before a layer is measured
GRAPH_POOL_WASTE = 0.1  # share of the CUDA graphs' memory pool that stays unused: 14.3 GiB were reserved for 12.9


@dataclass(frozen=True)
class FastPath:
    """The choice. `report` is the line that the user sees; `active` is False on the plain path."""

    active: bool
    report: str
    recomputed: int = 0
    skipped_flops: float = 0.0  # per token, see FastNeoX.skipped_flops
    fp8_products: bool = False  # of frozen weights
    inputs_on_host: bool = False  # of layers, in the machine's memory


def reason_against(model: torch.nn.Module, recipe: Recipe, capability: tuple[int, int] | None) -> str | None:
    """Why this run takes the plain path; None where the fast path is valid."""
    if recipe.fast == "off":
        return "--fast off"
    if capability is None:
        return tr("no GPU")
    if capability < BF16_CAPABILITY:
        return tr(
            "compute capability {major}.{minor}, and the fast path's kernels need 8.0",
            major=capability[0],
            minor=capability[1],
        )
    if not isinstance(model, GPTNeoXForCausalLM):
        return tr("{kind} has none, only GPT-NeoX", kind=type(model).__name__)
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
    say(
        tr(
            "fast path: compiling a layer and comparing its gradients with the plain ones, up to a "
            "minute the first time"
        )
    )
    try:
        if zero_stage == 3:
            plan = plan_sharded(fast, recipe, precision)
        else:
            budget = partial(measure_memory_budget, fast, model, recipe, zero_stage, replaced, processes)
            plan = make_plan(fast, recipe, precision, budget)
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
    skipped = fast.skipped_flops(flops_per_token(1, recipe.method == "full"))
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
    if free_memory_bytes()[0] < OFFLOAD_BELOW * fast.model.get_input_embeddings().weight.nbytes:
        fast.offload_to_cpu()
    if reason := reason_of_difference(fast, precision):
        return Plan(reason)
    fp8_products, products = choose_products(fast, recipe, precision)
    layers = len(fast.model.gpt_neox.layers)
    cached_bytes = fast.dequantized_bytes(fp8=fp8_products) if precision.nf4 or fp8_products else 0
    if cached_bytes and not precision.nf4:  # choose_products has checked that the copy fits
        fast.prepare(layers, fp8=True, dequantized=True)
    elif cached_bytes:  # a layer with cached weights is compiled apart: compile the kind that will probably be used
        likely = recipe.recompute != "all" and cached_bytes <= free_memory_bytes()[0] / 2
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
    if reason := reason_of_difference(fast, precision):
        return Plan(reason)
    layers = len(fast.model.gpt_neox.layers)
    why = tr("ZeRO-3 gathers their weights again for the backward pass")
    return Plan(recomputed=layers, why=why, products=SHORT[precision.compute])


def choose_products(fast: FastNeoX, recipe: Recipe, precision: Precision) -> tuple[bool, str]:
    """Whether frozen weights are rounded to fp8 for their products, and the report's words for the products.

    The first layer's gradients in fp8 are compared with the plain ones. Raises UserError where --compute-dtype fp8 was
    asked for and is not possible.
    """
    compute = SHORT[precision.compute]
    if precision.fp8_weights or not precision.fp8_products:
        return False, tr("fp8 and {dtype}", dtype=compute) if precision.fp8_weights else compute
    reason, cached_bytes, free_bytes = None, fast.dequantized_bytes(fp8=True), free_memory_bytes()[0]
    if odd := sorted({width for width in fast.widths() if width % FP8_WIDTH}):
        reason = tr(
            "fp8 products need widths that are multiples of {width}, and this model has {odd}",
            width=FP8_WIDTH,
            odd=odd[0],
        )
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
        if difference > MAX_DIFFERENCE_FP8:
            reason = tr("in fp8 a layer's gradients differ by {share:.0%} from the plain ones", share=difference)
    if reason and recipe.compute_dtype == "fp8":
        raise UserError(
            tr("compute_dtype fp8 is not possible here: {reason}. Set --compute-dtype to bf16.", reason=reason)
        )
    if reason:
        return False, f"{compute} ({reason})"
    return True, tr(
        "fp8 and {dtype} (gradients within {share:.1%}; --compute-dtype {dtype} turns fp8 off)",
        dtype=compute,
        share=difference,
    )


def install(fast: FastNeoX, plan: Plan) -> None:
    """Carry out the plan and replace the model's forward."""
    fast.recomputed = plan.recomputed
    if plan.offloaded:
        fast.offload_to_cpu()
    if plan.fp8_products or plan.dequantized_bytes:
        fast.prepare(len(fast.model.gpt_neox.layers), fp8=plan.fp8_products, dequantized=plan.dequantized_bytes > 0)
    fast.cuda_graphs = plan.cuda_graphs
    fast.install()


def reason_of_difference(fast: FastNeoX, precision: Precision) -> str | None:
    """The reason for the plain path where a layer's gradients differ too much from the plain ones, else None."""
    if (difference := fast.difference()) > (MAX_DIFFERENCE_FP8 if precision.fp8_weights else MAX_DIFFERENCE):
        return tr(
            "on this GPU a layer's gradients differ by {share:.0%} from the plain ones, please report it",
            share=difference,
        )
    return None


def plain_path(reason: str, recipe: Recipe, precision: Precision) -> FastPath:
    """The choice of transformers' and peft's own code, with the reason. UserError for --compute-dtype fp8."""
    if recipe.compute_dtype == "fp8" and not precision.fp8_weights:
        raise UserError(
            tr(
                "compute_dtype fp8 needs the fast path, and this run takes the plain one "
                "({reason}): set --compute-dtype to {dtype}.",
                reason=reason,
                dtype=SHORT[precision.compute],
            )
        )
    products = SHORT[precision.compute]
    report = tr(
        "plain path ({reason}): {recomputed}, {base}, products in {products}",
        reason=reason,
        recomputed=tr("every layer recomputed" if recipe.recompute != "none" else "no layer recomputed"),
        base=precision.base,
        products=tr("fp8 and {dtype}", dtype=products) if precision.fp8_weights else products,
    )
    return FastPath(False, report)


def measure_memory_budget(
    fast: FastNeoX,
    model: torch.nn.Module,
    recipe: Recipe,
    zero_stage: int = 0,
    replaced: bool = False,
    processes: int = 1,
) -> MemoryBudget:
    """One layer's measured need, and what is left beside gradients, the optimizer's states and the pass of a layer.

    The weights are on the GPU already; the engine's buffers (DDP's, of several `processes`, or ZeRO-2's) come later.
    ZeRO-2 divides gradients and states among the GPUs, which is not counted on. `replaced`: see `choose_fast_path`.
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
    free_bytes, total = free_memory_bytes()
    beside = (
        free_bytes - engine_bytes(gradients, zero_stage, processes) - LAST_LAYER_INPUTS * layer_input_bytes - passing
    )
    available = int(room_for_activations(beside, optimizer, gradients, int(KEPT_FREE * total), replaced))
    return MemoryBudget(available, free_bytes, saved_bytes, layer_input_bytes, graphs)
