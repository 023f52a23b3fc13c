"""Peak GPU memory of a run, by part, from its shapes alone (no torch), and whether that fits a GPU.

Weights, gradients and optimizer states are those of memory.py. The constants of the fast path are fitted to runs of the
polyglot-ko models (`measured.py` has the rows and their sources); the plain path's were not fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llm_qa.config.recipe import Recipe
from llm_qa.language import later
from llm_qa.planning.memory import OPTIMIZER, Sizes, of_recipe, states_by_part

# The parts of a GPU's memory beside those of memory.py.
ACTIVATIONS, LOGITS = later("activations"), later("logits")
COPIES, ENGINE = later("cached dequantised weights"), later("buffers of the engine")

SAVED = 22.5  # bytes a token and unit of width that a layer keeps for its backward pass; fitted: 1 x 8192 and 1 x 2048
PASSING = 20.0  # bytes a token and unit of width beside what layers keep; fitted: 29 of 40 layers recomputed
SAVED_TRAINING = 31.0  # the same where all weights train: inputs of products are kept; fitted: 1.3B, 8,192 tokens
LAYER_INPUT = 2  # bytes a token and unit of width: a recomputed layer keeps its 16-bit input alone
CACHED = 2  # bytes a weight of the fp8 copy in both layouts, or of one in 16 bits
LIVE_WEIGHTS = 2 * 10**9  # bytes of whole weights at once: DeepSpeed's stage3_max_live_parameters, in 16 bits
LAYER_VALUES = 32  # 16-bit values a token and unit of width in a layer's pass: 21 that it keeps, and what passes
LOGIT_BYTES = 10  # a token and word on the plain path: 16-bit and fp32 logits, and their gradient
REDUCE_BUCKET = 2 * 2 * 10**8  # bytes: reduce_bucket_size of ds_configs/zero2.json, in 16 bits
CONTEXT = 0.6 * 2**30  # bytes of a GPU that CUDA and its libraries take
# Share of a GPU's memory that is left to fragmentation, the head's logits and cuBLAS (66.5 GiB were reserved for 65.6):
# by plans, by what is refused before loading, by --auto-micro-batch and by the fast path.
KEPT_FREE = 0.06
MOST_TOKENS = 8192  # of a pass: no longer one was measured


@dataclass(frozen=True)
class Work:
    """A pass of one GPU: the model's layers, width and vocabulary, its tokens, and how many layers are recomputed.

    `plain`: on the plain path, with every layer recomputed. `inputs_on_host`: the layers' inputs are kept in the
    machine's memory. `copied`: 16-bit weights are kept in fp8 too. `passes` are those of an update: from the second on,
    the gradients of the earlier ones are there too.
    """

    layers: int
    d_model: int
    vocabulary: int
    tokens: int
    recomputed: int
    inputs_on_host: bool = False
    copied: bool = False
    passes: int = 1
    plain: bool = False


def usable_bytes(total: float) -> float:
    """Bytes that a run may allocate on a GPU of `total` bytes."""
    return (1 - KEPT_FREE) * (total - CONTEXT)


def copy_fits(copy: float, free: float) -> bool:
    """Whether 16-bit weights are kept in fp8 too: in up to half of the bytes that are `free` beside them."""
    return copy <= free / 2


def activations(work: Work, saved: float = SAVED) -> float:
    """Bytes of the layers' activations at the peak: one recomputed layer's are whole while it is computed again.

    `saved` are the bytes a token and unit of width that a layer keeps.
    """
    unit = work.tokens * work.d_model
    whole = work.layers - work.recomputed + (work.recomputed == work.layers)
    inputs = 0 if work.inputs_on_host else work.layers - whole
    return unit * (whole * saved + inputs * LAYER_INPUT + PASSING)


def plain_activations(work: Work) -> dict[str, float]:
    """Part -> bytes of a pass on the plain path with every layer recomputed: their inputs and one layer; the logits."""
    layers = 2.0 * work.tokens * work.d_model * (work.layers + LAYER_VALUES)
    return {ACTIVATIONS: layers, LOGITS: float(LOGIT_BYTES * work.tokens * work.vocabulary)}


def peak_by_part(
    recipe: Recipe, sizes: Sizes, work: Work, stage: int = 0, gpus: int = 1, offload: str = ""
) -> dict[str, float]:
    """Part -> bytes that a GPU has allocated at the peak, without the CUDA context.

    `stage` is ZeRO's, 0 for one process or DDP; `offload` is one of memory.OFFLOADS.
    """
    parts = states_by_part(recipe, sizes, stage, gpus, offload)
    if stage == 0 and "paged" in recipe.training.get("optim", ""):
        del parts[OPTIMIZER]  # no allocation of torch's: the driver moves it to the machine's memory
    if work.plain:
        parts |= plain_activations(work)
    elif recipe.method == "full" and stage == 0:
        parts[ACTIVATIONS] = _training_all(recipe, sizes, work, gpus)
    else:
        parts[ACTIVATIONS] = activations(work)
    if work.copied or (recipe.base_precision == "nf4" and not work.recomputed and stage != 3):
        parts[COPIES] = CACHED * sizes.linear
    gradients = of_recipe(recipe, stage).gradient * sizes.trained
    if engine := engine_bytes(gradients, stage, gpus, 2.0 * (sizes.linear + sizes.other)):
        parts[ENGINE] = engine
    return parts


def least_peak(
    recipe: Recipe, sizes: Sizes, work: Work, stage: int = 0, gpus: int = 1, offload: str = ""
) -> dict[str, float]:
    """The same for a pass of these tokens in as little memory as it can do with.

    Every layer is recomputed and, but under ZeRO-3, their inputs are in the machine's memory.
    """
    on_host = stage != 3 and not work.plain
    work = replace(work, recomputed=work.layers, inputs_on_host=on_host, copied=False)
    return peak_by_part(recipe, sizes, work, stage, gpus, offload)


def engine_bytes(gradients: float, stage: int, gpus: int, weights: float = LIVE_WEIGHTS) -> float:
    """Bytes that the engine holds beside the states, with `gradients` and 16-bit `weights` in bytes.

    These are buckets of gradients on their way, or under ZeRO-3 whole weights. DDP's buckets are a copy of all
    gradients: torch's gradient_as_bucket_view is off, as accelerate leaves it.
    """
    if stage == 3:
        return min(LIVE_WEIGHTS, weights)
    if stage == 2:
        return min(REDUCE_BUCKET, gradients)
    return gradients if gpus > 1 else 0.0


def _training_all(recipe: Recipe, sizes: Sizes, work: Work, gpus: int) -> float:
    """Bytes of activations where all weights train on one GPU or under DDP, as far as gradients leave them no room."""
    kept = of_recipe(recipe, 0)
    kept_inputs = activations(work, SAVED_TRAINING)
    if kept.weight == 4:
        kept_inputs += 2 * sizes.linear  # a 16-bit copy for the products
    gone = kept.gradient * sizes.trained if gradients_replace_activations(recipe, work.passes, gpus) else 0
    return max(0.0, kept_inputs - gone)


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
