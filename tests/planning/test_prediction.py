"""The prediction of the very run that starts: what make plan says of the same, and none where no formula holds."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llm_qa.config.recipe import load_recipe
from llm_qa.console import UserError
from llm_qa.models.fast.choice import FastPath
from llm_qa.planning import prediction
from llm_qa.planning.known_gpus import GPUS
from llm_qa.planning.measured import MEASURED
from llm_qa.planning.prediction import predict
from llm_qa.planning.ways import STAGE, Job, all_plans, best_of, measured_recipe
from llm_qa.training.strategy import Strategy

QLORA = load_recipe("scripts/recipes/qlora_12.8b.yaml")
ONE, TOKENS = Strategy(), 476_560
PLAIN = FastPath(False, "")


def fast(recomputed=0, *, fp8=True):
    return FastPath(True, "", recomputed, fp8_products=fp8)


@pytest.mark.parametrize(("gpu", "gpus"), [("H100", 1), ("RTX 4090", 1), ("T4", 2), ("A100", 1)])
def test_a_run_is_told_what_make_plan_says_of_it(gpu, gpus):
    plan = all_plans(Job("EleutherAI/polyglot-ko-12.8b", GPUS[gpu], gpus, 1, TOKENS, 3))[
        gpus > 1
    ]  # not the row of one among several
    recipe = replace(load_recipe(f"scripts/recipes/{plan.way.recipe}.yaml"), micro_batch_size=plan.micro_batch)
    path = PLAIN if gpu == "T4" else fast(plan.recomputed, fp8=GPUS[gpu].fp8 > 0)
    figures = predict(recipe, Strategy(gpus, gpus), path, GPUS[gpu], 3 * TOKENS)
    assert figures.peak_bytes / 2**30 == pytest.approx(plan.gib)
    assert figures.tokens_per_second == pytest.approx(plan.tokens_per_second)
    assert figures.seconds / 3600 == pytest.approx(plan.total_hours)


@pytest.mark.parametrize(
    "row",
    [row for row in MEASURED if not row.offload],
    ids=lambda row: f"{row.size}-{row.recipe}-{row.kind}-{row.engine}-{row.tokens}-{row.gpus}",
)
def test_every_measured_run_is_predicted_within_10_percent(row):
    packs = {"pack_length": row.tokens, "micro_batch_size": 1, "global_batch_size": row.passes * row.gpus}
    recipe, stage = replace(measured_recipe(row), **packs), STAGE[row.engine]
    path = FastPath(True, "", row.recomputed, fp8_products=row.kind == "fp8", inputs_on_host=row.inputs_on_host)
    figures = predict(recipe, Strategy(row.gpus, row.gpus, zero_stage=stage), path, GPUS[row.gpu], 1.0)
    assert figures.tokens_per_second == pytest.approx(row.tokens_per_second, rel=0.10)
    if row.gib:
        assert figures.peak_bytes / 2**30 == pytest.approx(row.gib, rel=0.05)


@pytest.mark.parametrize(
    ("recipe", "strategy", "path", "gpu"),
    [
        (QLORA, ONE, fast(), None),
        (replace(QLORA, model="skt/kogpt2-base-v2"), ONE, PLAIN, GPUS["H100"]),
        (replace(QLORA, model="somebody/else"), ONE, PLAIN, GPUS["H100"]),
        (replace(QLORA, lora_targets=["query_key_value"]), ONE, PLAIN, GPUS["H100"]),
        (replace(QLORA, pack_length=0), ONE, PLAIN, GPUS["H100"]),
        (replace(QLORA, recompute="none"), ONE, PLAIN, GPUS["H100"]),
        (QLORA, Strategy(2, 2, zero_stage=3, offload_optimizer=True), fast(), GPUS["H100"]),
    ],
    ids=["no GPU", "KoGPT2", "unknown model", "some layers", "padded", "nothing recomputed", "offload"],
)
def test_nothing_is_predicted_where_no_formula_holds(recipe, strategy, path, gpu):
    assert predict(recipe, strategy, path, gpu, 1.0) is None


def test_a_run_is_as_fast_as_the_calibration_of_its_gpu_found(tmp_path, monkeypatch, capsys):
    """After 3 measured updates the line before training, and so the one at the end, have their speed."""
    kept = tmp_path / "calibration.json"
    monkeypatch.setattr(prediction, "FILE", kept)
    monkeypatch.setattr(prediction, "device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(prediction, "count_updates", lambda arguments, train, recipe: (100, 3.0))
    data = SimpleNamespace(train=None, pairs=SimpleNamespace(tokens=range(TOKENS)))
    computed = prediction.predict_run(QLORA, ONE, fast(), data, None, prediction.gpu_here())
    assert "within 15% of what was measured on this GPU" in " ".join(capsys.readouterr().out.split())
    best = best_of(all_plans(Job(QLORA.model, GPUS["H100"], 1, 1, TOKENS, 3)))
    measured = {"gpu": "H100", "way": best.way.name, "model": QLORA.model, "date": "2026-11-27"}
    measured |= {"tokens_per_second": best.tokens_per_second / 2, "share": 0.5}
    kept.write_text(json.dumps(measured))
    found = prediction.predict_run(QLORA, ONE, fast(), data, None, prediction.gpu_here())
    assert found.tokens_per_second == pytest.approx(computed.tokens_per_second / 2)
    assert found.seconds == pytest.approx(2 * computed.seconds)
    assert found.peak_bytes == computed.peak_bytes
    assert "measured in 3 updates of" in " ".join(capsys.readouterr().out.split())
    kept.write_text("{}")
    with pytest.raises(UserError, match="is not what --calibrate writes"):
        prediction.gpu_here()
