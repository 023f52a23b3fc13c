"""Peak memory of GPT-2 and Llama shapes on the plain path beside what was measured of them.

Every layer recomputed needs what `footprint.plain_activations` says, which was not fitted to these runs; what layers
keep otherwise is fitted to them. Their speed has no formula.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.config.recipe import load_recipe
from llm_qa.models.shapes import SHAPES
from llm_qa.planning.footprint import LOGIT_BYTES, Work, plain_activations
from llm_qa.planning.memory import Sizes, memory_per_gpu
from llm_qa.planning.ways import RECIPES

KOGPT2 = SHAPES["skt/kogpt2-base-v2"]
KEPT = {"gpt2": 99.0, "llama": 70.5}  # bytes a token and unit of width that a layer keeps; with products in bf16


@dataclass(frozen=True)
class PlainModel:
    """A model's name in the table, its family (a key of KEPT), shape, and numbers of weights."""

    name: str
    family: str
    layers: int
    d_model: int
    vocabulary: int
    linear: int
    other: int

    def sizes(self, method: str, rank: int) -> Sizes:
        """Its weights, with those that train: all, or LoRA of a rank on every linear layer of a Llama."""
        if method == "full":
            return Sizes(self.linear, self.other, self.linear + self.other)
        sides = 2 * 2 * LLAMA_WIDTH + 2 * (LLAMA_WIDTH + LLAMA_KEYS) + 3 * (LLAMA_WIDTH + LLAMA_INNER)
        return Sizes(self.linear, self.other, self.layers * rank * sides)


# Llama 3's 8B shape: grouped keys and values of 1,024, an inner width of 14,336, an untied head.
LLAMA_WIDTH, LLAMA_KEYS, LLAMA_INNER, LLAMA_LAYERS, LLAMA_VOCABULARY = 4096, 1024, 14_336, 32, 128_256
_linear = KOGPT2.layers * (4 * KOGPT2.d_model**2 + 2 * KOGPT2.d_model * KOGPT2.d_ff)
GPT2 = PlainModel(
    "KoGPT2",
    "gpt2",
    KOGPT2.layers,
    KOGPT2.d_model,
    KOGPT2.vocabulary,
    _linear,
    KOGPT2.parameters - _linear,
)
LLAMA = PlainModel(
    "8B Llama",
    "llama",
    LLAMA_LAYERS,
    LLAMA_WIDTH,
    LLAMA_VOCABULARY,
    LLAMA_LAYERS * LLAMA_WIDTH * (2 * LLAMA_WIDTH + 2 * LLAMA_KEYS + 3 * LLAMA_INNER),
    2 * LLAMA_VOCABULARY * LLAMA_WIDTH + LLAMA_WIDTH * (2 * LLAMA_LAYERS + 1),
)


@dataclass(frozen=True)
class PlainRun:
    """A run on one H200 (`scripts/bench.py`, torch 2.11, 2026-11-27): GiB at the peak, tokens a second."""

    model: PlainModel
    recipe: str
    tokens: int
    recomputed: int
    gib: float
    tokens_per_second: int


PLAIN_RUNS = (
    PlainRun(GPT2, "full_kogpt2", 2048, 0, 4.44, 44_680),
    PlainRun(GPT2, "full_kogpt2", 8192, 0, 12.60, 150_046),
    PlainRun(GPT2, "full_kogpt2", 8192, 12, 6.56, 96_087),
    PlainRun(LLAMA, "qlora_12.8b", 4096, 0, 45.25, 8_420),
    PlainRun(LLAMA, "qlora_12.8b", 8192, 0, 86.86, 7_558),
    PlainRun(LLAMA, "qlora_12.8b", 8192, 32, 19.54, 5_522),
    PlainRun(LLAMA, "lora_12.8b", 4096, 32, 22.21, 5_919),
)


def plain_gib(run: PlainRun) -> float:
    """Peak GiB of a run by the formulas; nothing or every layer is recomputed."""
    recipe, model = load_recipe(RECIPES / f"{run.recipe}.yaml"), run.model
    states = memory_per_gpu(recipe, model.sizes(recipe.method, recipe.lora_r), 0, 1)
    if run.recomputed:
        work = Work(model.layers, model.d_model, model.vocabulary, run.tokens, run.recomputed, plain=True)
        passing = sum(plain_activations(work).values())
    else:
        layers = model.layers * model.d_model * KEPT[model.family]
        passing = run.tokens * (layers + LOGIT_BYTES * model.vocabulary)
    return (states + passing) / 2**30
