"""What bench.py measures with: documents, the original's rows, the stopwatch."""

import numpy as np
import pytest
import torch

from llm_qa.benchmark.baselines import ORIGINAL_LENGTH, PaddedPairs, bf16, fp8_base, original_recipe, ours, plain
from llm_qa.benchmark.config import BenchmarkConfig
from llm_qa.benchmark.documents import LONGEST, PAIRS, SHORTEST, synthetic_pairs
from llm_qa.benchmark.stopwatch import Stopwatch
from llm_qa.config.recipe import EMBEDDED_MODEL, make_recipe
from llm_qa.console import UserError


def test_documents_have_the_original_datas_lengths():
    pairs = synthetic_pairs(1000, 512, seed=0)
    assert len(pairs) == PAIRS
    assert pairs.lengths.min() >= SHORTEST
    assert pairs.lengths.max() <= LONGEST
    assert pairs.lengths.mean() == pytest.approx(74, abs=2)
    assert np.mean(pairs.lengths > 128) == pytest.approx(0.10, abs=0.02)


def test_the_original_pads_and_cuts_at_128_and_learns_every_token():
    pairs = synthetic_pairs(1000, 512, seed=0)
    rows = PaddedPairs(pairs)
    for index in (int(pairs.lengths.argmin()), int(pairs.lengths.argmax())):
        row, real = rows[index], min(int(pairs.lengths[index]), ORIGINAL_LENGTH)
        assert {len(value) for value in row.values()} == {ORIGINAL_LENGTH}
        assert int(row["attention_mask"].sum()) == real
        assert torch.equal(row["labels"][:real], row["input_ids"][:real])
        assert (row["labels"][real:] == -100).all()
    assert rows.epoch_tokens == sum(int(rows[i]["attention_mask"].sum()) for i in range(len(rows)))


def test_the_originals_recipe_for_each_model():
    lora = original_recipe(make_recipe({"base_precision": "fp8", "lora_r": 64, "optim": "adamw_torch"}))
    assert (lora.base_precision, lora.lora_r, lora.lora_alpha, lora.recompute) == ("nf4", 8, 32, "all")
    assert (lora.micro_batch_size, lora.global_batch_size, lora.pack_length) == (8, 32, 0)
    assert lora.training["optim"] == "adamw_8bit"
    full = original_recipe(make_recipe({"method": "full", "base_precision": "fp32", "model": "skt/kogpt2-base-v2"}))
    assert (full.base_precision, full.recompute, full.fast) == ("fp32", "none", "off")


def test_a_loss_that_is_not_finite_is_no_measurement():
    watch = Stopwatch(warmup=1, steps=1)
    watch.update(1, 10)
    watch.update(2, 30)
    watch.losses.append(2.0)
    assert watch.result()["tokens_measured"] == 20
    watch.losses.append(float("nan"))
    with pytest.raises(RuntimeError, match="not all finite"):
        watch.result()


@pytest.mark.parametrize(("warmup", "steps"), [(1, 2), (3, 4)])
@pytest.mark.parametrize("trace", [False, True])
def test_the_tokens_measured_are_those_of_the_updates_measured(tmp_path, warmup, steps, trace):
    """Trainer's steps that are logged for other reasons, or none, before the first one measured change nothing."""
    full = 2 * 64  # tokens of an update
    values = {"model": EMBEDDED_MODEL, "base_precision": "fp32", "pack_length": 64, "max_length": 64}
    values |= {"micro_batch_size": 2, "global_batch_size": 2, "save_strategy": "no", "eval_strategy": "no"}
    recipe = make_recipe({**values, "max_steps": warmup + steps + trace, "logging_steps": steps})
    row = ours(BenchmarkConfig(recipe, warmup, steps, str(tmp_path)))
    assert 0.9 * steps * full < row["tokens_measured"] <= steps * full


@pytest.mark.parametrize(
    ("baseline", "settings"),
    [
        (bf16, {"base_precision": "nf4", "compute_dtype": "bf16", "fast": "auto"}),
        (fp8_base, {"base_precision": "fp8", "compute_dtype": "auto", "fast": "auto"}),
        (plain, {"base_precision": "nf4", "compute_dtype": "auto", "fast": "off"}),
    ],
)
def test_what_a_contender_changes_of_a_recipe_in_fp8(monkeypatch, baseline, settings):
    monkeypatch.setattr("llm_qa.benchmark.baselines.ours", lambda bench_config: bench_config.recipe)
    recipe = baseline(BenchmarkConfig(make_recipe({"compute_dtype": "fp8"}), 1, 1, ""))
    assert {name: getattr(recipe, name) for name in settings} == settings


def test_weights_that_are_trained_cannot_be_kept_in_fp8():
    with pytest.raises(UserError, match="leave fp8-base out of --baselines"):
        fp8_base(BenchmarkConfig(make_recipe({"method": "full", "base_precision": "bf16"}), 1, 1, ""))
