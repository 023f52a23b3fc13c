"""The best checkpoint on several processes: chosen alike, whole, and what the run ends with."""

import json

import oracle
import pytest
from launching import train, training, write_recipe

from llm_qa import files
from llm_qa.config.recipe import load_recipe
from llm_qa.models.loading import load_run

pytestmark = pytest.mark.distributed
WORSE = {"script": "tests/train_getting_worse.py"}


def validation_losses(run):
    lines = [json.loads(line) for line in (run / files.LOG).read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


@pytest.mark.parametrize(("kind", "strategy"), [("nf4", "ddp"), ("lora_fp32", "zero3"), ("full", "zero3")])
def test_the_run_ends_with_the_weights_of_the_lowest_validation_loss(kind, strategy, tmp_path):
    """ZeRO-3 gathers whole weights into its checkpoints: what is loaded scores what the live model did at that step."""
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, kind, max_steps=6, save_total_limit=2, early_stopping=1)
    printed = train(strategy, recipe, run, **WORSE)
    losses = validation_losses(run)
    assert list(losses) == [2, 4], "early stopping ends all processes after the same step"
    assert training(run)["kept"] == {"step": 2, "validation_loss": losses[2]}
    assert f"it holds the best checkpoint (step 2, validation loss {losses[2]:.4f}" in printed
    model, tokenizer = load_run(run)
    scored = oracle.validation_loss(model, tokenizer, load_recipe(run / files.RECIPE))
    assert scored == pytest.approx(losses[2] - 2, rel=1e-5)
