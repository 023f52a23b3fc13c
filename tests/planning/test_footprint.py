"""Memory and speed on paper beside what was measured (`measured.py` has the rows, their GPUs and sources)."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_qa.config.recipe import load_recipe
from llm_qa.models.lora import add_lora
from llm_qa.models.shapes import SHAPES
from llm_qa.planning.dry_run import sizes_of as sizes_of_model
from llm_qa.planning.footprint import SAVED_TRAINING, Work, activations, peak_by_part, room_for_activations
from llm_qa.planning.measured import MEASURED
from llm_qa.planning.plain_path import LLAMA, PLAIN_RUNS, plain_gib
from llm_qa.planning.speed import MEASURED_WITHIN
from llm_qa.planning.ways import predicted, sizes_of


@pytest.mark.parametrize(
    "row", MEASURED, ids=lambda row: f"{row.size}-{row.recipe}-{row.engine}-{row.gpus}-{row.recomputed}"
)
def test_paper_and_measurement_agree(row):
    gib, speed = predicted(row)
    if row.gib:
        assert gib == pytest.approx(row.gib, rel=0.05)
    assert speed == pytest.approx(row.tokens_per_second, rel=MEASURED_WITHIN)


def test_enough_was_measured_to_say_so():
    with_memory = [row for row in MEASURED if row.gib is not None]
    assert len(with_memory) >= 28
    assert {row.size for row in with_memory} == {"1.3b", "3.8b", "5.8b", "12.8b"}


def test_gradients_of_earlier_passes_lie_beside_the_activations():
    """A single pass holds the larger of the two, as was measured; a second one both, and so does DDP with its copy."""
    recipe, shape = load_recipe("scripts/recipes/full_12.8b.yaml"), SHAPES["EleutherAI/polyglot-ko-5.8b"]
    sizes = sizes_of(shape, recipe)
    one = Work(shape.layers, shape.d_model, shape.vocabulary, 2048, 0)
    two = Work(shape.layers, shape.d_model, shape.vocabulary, 2048, 0, passes=2)
    states = 10 * sizes.trained
    assert sum(peak_by_part(recipe, sizes, one).values()) == states
    assert sum(peak_by_part(recipe, sizes, two).values()) == states + activations(two, SAVED_TRAINING)
    together = peak_by_part(recipe, sizes, one, gpus=2)
    assert together["activations"] == activations(one, SAVED_TRAINING)
    assert together["buffers of the engine"] == together["gradients"] == 2 * sizes.trained


@pytest.mark.parametrize(
    ("free", "gradients", "replaced", "room"),
    [(100, 20, False, 45), (100, 20, True, 60), (100, 3, True, 62), (60, 30, True, -5), (60, 30, False, -5)],
)
def test_room_for_activations(free, gradients, replaced, room):
    """The optimizer keeps 30, and 5 stay free: twice where the gradients' room is lent, never where states lack it."""
    assert room_for_activations(free, 30, gradients, 5, replaced) == room


@pytest.mark.parametrize(
    "run", PLAIN_RUNS, ids=lambda run: f"{run.model.family}-{run.recipe}-{run.tokens}-{run.recomputed}"
)
def test_paper_and_measurement_agree_on_the_plain_path(run):
    assert plain_gib(run) == pytest.approx(run.gib, rel=0.05)


def test_weights_of_a_llama_are_those_of_the_model():
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=False,
    )
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml")
    with torch.device("meta"):
        model = add_lora(LlamaForCausalLM(config), recipe)
    assert LLAMA.sizes("lora", recipe.lora_r) == sizes_of_model(model, recipe)
