"""Answering is measured in every way, with every token counted."""

import pytest
import torch

from llm_qa.benchmark.answering import ANSWERING, measure_answering
from llm_qa.config.recipe import make_recipe
from llm_qa.models import embedded
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base


@pytest.fixture(scope="module")
def model():
    recipe = make_recipe({"base_precision": "nf4"})
    return add_lora(random_base(embedded.model_config(320, 0), resolve_precision(recipe, None), "cpu"), recipe).eval()


@pytest.mark.parametrize("how", ANSWERING)
def test_every_answer_is_as_long_as_was_asked_for(model, how):
    row = measure_answering(model, how, questions=5, rows=2, prompt_tokens=4, new_tokens=6)
    assert row["tokens_measured"] == 5 * 6
    assert row["rows"] == (1 if how == "original" else 2)
    assert row["tokens_per_second"] == pytest.approx(30 / row["seconds"], rel=0.05)
    steps = 6 * (5 if how == "original" else 3)
    assert row["milliseconds_a_token_step"] == pytest.approx(row["seconds"] * 1e3 / steps, rel=0.05)
    assert row["peak_allocated_bytes"] > 0
    assert ("static decoding" in row["report"]) == (how == "static")


@pytest.mark.parametrize("how", ANSWERING)
def test_what_is_not_finite_is_no_measurement(how):
    broken = random_base(
        embedded.model_config(320, 0), resolve_precision(make_recipe({"base_precision": "fp32"}), None), "cpu"
    )
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    if how == "original":
        broken.generate = lambda input_ids, **arguments: input_ids  # sampling from NaN stops by itself
    with pytest.raises(RuntimeError, match="not finite"):
        measure_answering(broken.eval(), how, questions=2, rows=2, prompt_tokens=3, new_tokens=2)
