"""Peak GPU memory of a GPT-NeoX run on the fast path, by part, from its shapes alone (no torch).

Weights, gradients and optimizer states are those of memory.py. The constants below are fitted to runs of the
polyglot-ko models (`measured.py` has the rows and their sources); the plain path was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.config.recipe import Recipe
from llm_qa.planning.memory import Sizes, memory_per_gpu, of_recipe

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
    """

    layers: int
    d_model: int
    tokens: int
    recomputed: int
    inputs_on_host: bool = False
    copied: bool = False


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
    parts = {"weights, gradients, optimizer": states, "activations": activations(work)}
    if recipe.method == "full" and stage == 0:
        parts |= _training_all(recipe, sizes, work, states)
    if work.copied or (recipe.base_precision == "nf4" and not work.recomputed and stage != 3):
        parts["unpacked weights"] = CACHED * sizes.linear
    if stage == 3:
        parts["engine"] = LIVE_WEIGHTS
    elif stage == 2:
        parts["engine"] = min(REDUCE_BUCKET, 2.0 * sizes.trained)
    elif gpus > 1:
        parts["engine"] = 4.0 * sizes.trained  # DDP's buckets: a copy of the fp32 gradients
    return parts


def _training_all(recipe: Recipe, sizes: Sizes, work: Work, states: float) -> dict[str, float]:
    """States and activations where all weights train on one GPU or under DDP.

    Gradients come while activations go, so the peak is either the last forward pass, without gradients, or the end of
    the backward pass, without activations. A paged optimizer's states are no allocation of torch's.
    """
    kept = of_recipe(recipe, 0)
    if "paged" in recipe.training.get("optim", ""):
        states -= kept.optimizer * sizes.trained
    kept_inputs = activations(work, SAVED_TRAINING)
    if kept.weight == 4:
        kept_inputs += 2 * sizes.linear  # a 16-bit copy for the products
    return {
        "weights, gradients, optimizer": states,
        "activations": max(0.0, kept_inputs - kept.gradient * sizes.trained),
    }
