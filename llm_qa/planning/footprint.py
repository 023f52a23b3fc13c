"""Peak GPU memory of a GPT-NeoX run on the fast path, by part, from its shapes alone (no torch).

Weights, gradients and optimizer states are those of memory.py. The constants below are fitted to runs of the
polyglot-ko models (`measured.py` has the rows and their sources); the plain path was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.config.recipe import Recipe
from llm_qa.language import later
from llm_qa.planning.memory import Sizes, memory_per_gpu, of_recipe

# The parts of a GPU's memory by the names that JSON holds; `tr` says them in the chosen language.
STATES, ACTIVATIONS = later("weights, gradients, optimizer"), later("activations")
COPIES, ENGINE = later("cached dequantised weights"), later("engine")

SAVED = 22.5  # bytes a token and unit of width that a layer keeps for its backward pass; fitted: 1 x 8192 and 1 x 2048
PASSING = 20.0  # bytes a token and unit of width beside what layers keep; fitted: 29 of 40 layers recomputed
SAVED_TRAINING = 31.0  # the same where all weights train: inputs of products are kept; fitted: 1.3B, 8,192 tokens
LAYER_INPUT = 2  # bytes a token and unit of width: a recomputed layer keeps its 16-bit input alone
CACHED = 2  # bytes a weight of the fp8 copy in both layouts, or of one in 16 bits
LIVE_WEIGHTS = 2 * 10**9  # bytes of whole weights at once: DeepSpeed's stage3_max_live_parameters, in 16 bits
LAYER_VALUES = 32  # 16-bit values a token and unit of width in a layer's pass: 21 that it keeps, and what passes
LOGIT_BYTES = 10  # a token and word on the plain path: 16-bit and fp32 logits, and their gradient
REDUCE_BUCKET = 2 * 2 * 10**8  # bytes: reduce_bucket_size of ds_configs/zero2.json, in 16 bits


@dataclass(frozen=True)
class Work:
    """A pass of one GPU: the model's layers and width, its tokens, and how many layers are recomputed.

    `inputs_on_host`: the layers' inputs are kept in the machine's memory. `copied`: 16-bit weights are kept in fp8 too.
    `passes` are those of an update: from the second on, the gradients of the earlier ones are there too.
    """

    layers: int
    d_model: int
    tokens: int
    recomputed: int
    inputs_on_host: bool = False
    copied: bool = False
    passes: int = 1


def activations(work: Work, saved: float = SAVED) -> float:
    """Bytes of the layers' activations at the peak: one recomputed layer's are whole while it is computed again.

    `saved` are the bytes a token and unit of width that a layer keeps.
    """
    unit = work.tokens * work.d_model
    whole = work.layers - work.recomputed + (work.recomputed == work.layers)
    inputs = 0 if work.inputs_on_host else work.layers - whole
    return unit * (whole * saved + inputs * LAYER_INPUT + PASSING)


def plain_pass_bytes(layers: int, d_model: int, vocabulary: int, tokens: int) -> float:
    """Bytes that a pass needs on the plain path with every layer recomputed: inputs, one layer, logits; an estimate."""
    return 2.0 * tokens * d_model * (layers + LAYER_VALUES) + LOGIT_BYTES * tokens * vocabulary


def peak_by_part(recipe: Recipe, sizes: Sizes, work: Work, stage: int = 0, gpus: int = 1) -> dict[str, float]:
    """Part -> bytes that a GPU has allocated at the peak, without the CUDA context. `stage`: ZeRO's, 0 without."""
    states = memory_per_gpu(recipe, sizes, stage, gpus)
    parts = {STATES: states, ACTIVATIONS: activations(work)}
    if recipe.method == "full" and stage == 0:
        parts |= _training_all(recipe, sizes, work, states, gpus)
    if work.copied or (recipe.base_precision == "nf4" and not work.recomputed and stage != 3):
        parts[COPIES] = CACHED * sizes.linear
    if stage == 3:
        parts[ENGINE] = LIVE_WEIGHTS
    elif stage == 2:
        parts[ENGINE] = min(REDUCE_BUCKET, 2.0 * sizes.trained)
    elif gpus > 1:
        parts[ENGINE] = 4.0 * sizes.trained  # DDP's buckets: a copy of the fp32 gradients
    return parts


def _training_all(recipe: Recipe, sizes: Sizes, work: Work, states: float, gpus: int) -> dict[str, float]:
    """States and activations where all weights train on one GPU or under DDP.

    A paged optimizer's states are no allocation of torch's.
    """
    kept = of_recipe(recipe, 0)
    if "paged" in recipe.training.get("optim", ""):
        states -= kept.optimizer * sizes.trained
    kept_inputs = activations(work, SAVED_TRAINING)
    if kept.weight == 4:
        kept_inputs += 2 * sizes.linear  # a 16-bit copy for the products
    gone = kept.gradient * sizes.trained if gradients_replace_activations(recipe, work.passes, gpus) else 0
    return {STATES: states, ACTIVATIONS: max(0.0, kept_inputs - gone)}


def gradients_replace_activations(recipe: Recipe, passes: int, gpus: int) -> bool:
    """Whether an update never holds all gradients and all activations at once, so that the larger of them counts.

    So it is where all weights train on one GPU in updates of a single pass: the forward pass ends without gradients,
    and the backward pass without activations. Later passes find the gradients of the earlier ones.
    """
    return recipe.method == "full" and passes == 1 and gpus == 1


def room_for_activations(free: float, optimizer: float, gradients: float, margin: float, replaced: bool) -> float:
    """Bytes for activations in `free` bytes beside what the optimizer keeps; below 0 where not even the states fit.

    Where gradients are `replaced` for activations (`gradients_replace_activations`), their room counts too, less the
    `margin` once more for the holes between blocks of different sizes: no run as full as that was measured.
    """
    room = free - optimizer - gradients - margin
    return room + max(0.0, gradients - margin) if replaced and room >= 0 else room
