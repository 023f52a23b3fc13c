"""Which of the fast pieces a run uses, and how many layers it recomputes: decided once, and said with the reason."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch
from transformers import GPTNeoXForCausalLM

from llm_qa.config import Recipe
from llm_qa.console import say
from llm_qa.models.fast.neox import FastNeoX, HostEmbedding
from llm_qa.models.fast.sharded import ShardedNeoX
from llm_qa.models.gpus import flops_per_token, free_memory_bytes
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.quantization import BF16_CAPABILITY, SHORT, Precision

LAST_LAYER = 3  # inputs of a layer that the last one keeps beside what the others do: it is not compiled
OPTIMIZER_BYTES = {8: 2, 32: 8}  # Adam's two moments of a trained weight, in 8 or 32 bits
MOST_DIFFERENT, MOST_DIFFERENT_FP8 = 0.05, 0.2  # of a layer's gradient from the plain one's, relative
SPILL_BELOW = 3  # times the embedding: with less memory free, it goes before a layer is tried
EXPANDABLE = "expandable_segments:True"  # the allocator then leaves fewer holes: 0.4 GiB less at 7 GiB
KEPT_FREE = 0.06  # share of the memory that is left to fragmentation, the head's logits and cuBLAS


@dataclass(frozen=True)
class FastPath:
    """What was chosen. `report` is the line that the user sees; `active` is False on the plain path."""

    active: bool
    report: str
    recomputed: int = 0
    skipped_flops: float = 0.0  # a token, of the model's own


def reason_against(model: torch.nn.Module, recipe: Recipe, capability: tuple[int, int] | None) -> str | None:
    """Why this run takes the plain path; None where the fast one is valid."""
    if recipe.fast == "off":
        return "--fast off"
    if capability is None:
        return "no GPU"
    if capability < BF16_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}, and its kernels need 8.0"
    if not isinstance(model, GPTNeoXForCausalLM):
        return f"{type(model).__name__} has none, only GPT-NeoX"
    config = model.config
    if config.hidden_dropout or config.attention_dropout:
        return "the model's own dropout is on"
    if not (config.use_parallel_residual and config.hidden_act == "gelu" and config.attention_bias):
        return "this GPT-NeoX is built otherwise than polyglot-ko"
    linears = linear_layers(model)
    if recipe.method == "lora" and not all(hasattr(layer, "lora_A") for layer in adapted_layers(linears)):
        return "--lora-targets leaves linear layers without LoRA"
    return None


def adapted_layers(linears: dict[str, torch.nn.Module]) -> list[torch.nn.Module]:
    """The linear layers of a model as peft wraps them, LoRA's own small ones left out."""
    return [layer for name, layer in linears.items() if ".base_layer" not in name and ".lora_" not in name]


def choose_fast_path(
    model: torch.nn.Module,
    recipe: Recipe,
    precision: Precision,
    tokens: int,
    learned: int,
    zero_stage: int,
    capability: tuple[int, int] | None,
) -> FastPath:
    """Put the fast path on `model` (plain or with LoRA) where it is valid.

    `tokens` are those of a forward pass, of which at most `learned` have a label.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if reason := reason_against(causal, recipe, capability):
        return plain_path(reason, recipe, precision)
    kind, attempt = (ShardedNeoX, try_sharded_path) if zero_stage == 3 else (FastNeoX, try_fast_path)
    fast = kind(
        causal, precision.compute, tokens, learned, compiled=True, graphed=recipe.method == "lora" and not zero_stage
    )
    say("fast path: comparing a layer with the plain one and compiling it, up to a minute the first time")
    try:
        return attempt(fast, model, recipe, precision)
    except Exception as error:
        if type(error).__name__ != "OutOfResources":  # Triton's; there is no Triton on a CPU to import it from
            raise
        size = f"--lora-r {recipe.lora_r} in " if recipe.method == "lora" else ""
        reason = f"its kernels for {size}{SHORT[precision.compute]} need more than this GPU has"
        return plain_path(reason, recipe, precision)


def try_fast_path(fast: FastNeoX, model: torch.nn.Module, recipe: Recipe, precision: Precision) -> FastPath:
    """Compare, measure, choose, take over; Triton's OutOfResources where a kernel does not fit the GPU."""
    if free_memory_bytes()[0] < SPILL_BELOW * fast.model.get_input_embeddings().weight.nbytes:
        fast.spill()
    if reason := reason_of_difference(fast, precision):
        return plain_path(reason, recipe, precision)
    layers = len(fast.model.gpt_neox.layers)
    copy = fast.unpacked_bytes() if precision.base == "nf4" and recipe.recompute != "all" else 0
    if copy and copy <= free_memory_bytes()[0] / 2:  # it will be taken, most likely: compile for it, not for both
        fast.unpack(1)
    need = measure_need(fast, model, recipe)
    least = layers * (need.kept if recipe.recompute == "none" else need.shared)
    tight = fast.graphed and need.room < least + need.graphs
    fast.graphed = fast.graphed and not tight
    if fast.graphed:
        need = dataclasses.replace(need, room=need.room - need.graphs)
    fast.recomputed, why = layers_to_recompute(need, recipe, layers)
    if fast.recomputed == layers and need.room < layers * need.shared:
        fast.spill()
    fast.unpacked.clear()
    # Where it is not taken, a pass makes the weights of one layer at a time: KEPT_FREE has room for those.
    if unpacked := copy and not fast.recomputed and copy <= need.room - layers * need.kept:
        fast.unpack(layers)
    fast.take_over()
    report = (
        f"fast path: attention inside documents, {fast.tokens:,} packed tokens, compiled layers, {fast.recomputed} of "
        f"{layers} layers recomputed ({why}), {precision.base}"
        + (f" unpacked once into {copy / 2**30:.1f} GiB" if unpacked else "")
        + f", products in {SHORT[precision.compute]}"
        + (", no CUDA graphs because memory is short" if tight else "")
        + (f", {what_is_spilled(fast)} in the machine's memory" if fast.spilled else "")
    )
    settings = (os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    if fast.spilled and not any(EXPANDABLE in setting for setting in settings):
        report += f"; start with PYTORCH_CUDA_ALLOC_CONF={EXPANDABLE} if that is still too much for the GPU's"
    skipped = fast.skipped_flops(flops_per_token(1, recipe.method == "full"))
    return FastPath(True, report, fast.recomputed, skipped)


def try_sharded_path(fast: ShardedNeoX, model: torch.nn.Module, recipe: Recipe, precision: Precision) -> FastPath:
    """Compare and take over. All layers are recomputed, so there is nothing to choose."""
    if reason := reason_of_difference(fast, precision):
        return plain_path(reason, recipe, precision)
    fast.take_over()
    report = (
        f"fast path: attention inside documents, {fast.tokens:,} packed tokens, compiled layers, each recomputed as "
        f"ZeRO-3 gathers its weights again, {precision.base}, products in {SHORT[precision.compute]}"
    )
    return FastPath(True, report, fast.recomputed, fast.skipped_flops(flops_per_token(1, recipe.method == "full")))


def reason_of_difference(fast: FastNeoX, precision: Precision) -> str | None:
    """Why the plain path is taken where a layer's fast gradient is too far from the plain one's."""
    if (difference := fast.difference()) > (MOST_DIFFERENT_FP8 if precision.fp8 else MOST_DIFFERENT):
        return f"on this GPU the fast layer differs by {difference:.0%} from the plain one, please report it"
    return None


def what_is_spilled(fast: FastNeoX) -> str:
    """A tied or trained embedding stays on the GPU."""
    moved = isinstance(fast.model.get_input_embeddings(), HostEmbedding)
    return "layers' inputs and the embedding" if moved else "layers' inputs"


def plain_path(reason: str, recipe: Recipe, precision: Precision) -> FastPath:
    """transformers and peft as they are, and why."""
    recomputed = "every layer recomputed" if recipe.recompute != "none" else "no layer recomputed"
    return FastPath(False, f"plain path ({reason}): sdpa attention, {recomputed}, {precision.base}")


@dataclass(frozen=True)
class Need:
    """Bytes of the GPU: `room` for what layers keep; a layer `kept`, recomputed `shared`; what `graphs` add."""

    room: int
    free: int
    kept: int
    shared: int
    graphs: int


def measure_need(fast: FastNeoX, model: torch.nn.Module, recipe: Recipe) -> Need:
    """One layer's measured need, and what is left beside the optimizer's states and the pass of a layer."""
    kept, passing, shared = fast.measure_layer()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    bits = 8 if "8bit" in str(recipe.training.get("optim", "")) else 32
    reserve = trained * (4 + OPTIMIZER_BYTES[bits]) + LAST_LAYER * shared
    free, total = free_memory_bytes()
    graphs = trained * 8  # the backward graph's gradients and their copies
    return Need(free - reserve - passing - int(KEPT_FREE * total), free, kept, shared, graphs)


def layers_to_recompute(need: Need, recipe: Recipe, layers: int) -> tuple[int, str]:
    """How many layers keep only their input, and why: as few as the memory allows."""
    if recipe.recompute != "auto":
        return (layers if recipe.recompute == "all" else 0), f"--recompute {recipe.recompute}"
    room = need.room - layers * need.shared
    number = min(layers, max(0, layers - int(room // max(1, need.kept - need.shared))))
    return number, f"a layer keeps {need.kept / 2**30:.2f} GiB and {need.free / 2**30:.1f} GiB are free"
