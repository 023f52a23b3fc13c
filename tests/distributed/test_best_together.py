"""The best checkpoint on several processes: chosen alike, whole, and what the run ends with."""

import json

import oracle
import pytest
from launching import train, training, write_recipe

from llm_qa import files
from llm_qa.config import load_recipe
from llm_qa.models.loading import load_run

pytestmark = pytest.mark.distributed
# So fast that the validation loss is soon past its lowest.
TOO_FAST = {"learning_rate": 0.05, "max_steps": 8, "save_steps": 2, "save_total_limit": 2}


def validation_losses(run):
    lines = [json.loads(line) for line in (run / files.LOG).read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


@pytest.mark.parametrize(("kind", "strategy"), [("lora_fp32", "ddp"), ("lora_fp32", "zero3"), ("full", "zero3")])
def test_the_run_ends_with_the_weights_of_the_lowest_validation_loss(kind, strategy, tmp_path):
    run = tmp_path / "run"
    printed = train(strategy, write_recipe(tmp_path, kind, **TOO_FAST), run)
    losses = validation_losses(run)
    best = min(losses, key=losses.get)
    assert best < max(losses), "the last one is not the best"
    assert training(run)["kept"] == {"step": best, "validation_loss": losses[best]}
    assert f"it holds the best checkpoint (step {best}, validation loss {losses[best]:.4f}" in printed
    model, tokenizer = load_run(run)
    scored = oracle.validation_loss(model, tokenizer, load_recipe(run / files.RECIPE))
    assert scored == pytest.approx(losses[best], rel=1e-5)


def test_early_stopping_ends_all_processes_after_the_same_step(tmp_path):
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, "lora_fp32", **{**TOO_FAST, "max_steps": 100}, early_stopping=1)
    printed = train("ddp", recipe, run)
    losses = validation_losses(run)
    assert training(run)["steps"] == max(losses) < 100
    assert f"early stopping at step {max(losses)} of 100" in printed
    assert training(run)["kept"]["step"] == min(losses, key=losses.get)
