"""A run that cannot fit is refused with the nearest way of the plan that does."""

import re

import pytest

from llm_qa.config.recipe import load_recipe
from llm_qa.console import UserError
from llm_qa.planning import dry_run
from llm_qa.training.strategy import Strategy


@pytest.mark.parametrize(
    ("gpu", "gib", "recipe", "strategy", "nearest"),
    [
        ("Tesla T4", 14.6, "lora_12.8b", Strategy(), r"QLoRA nf4, one GPU \(.* GiB\): make train .*qlora_12.8b_t4x2"),
        ("NVIDIA H100 80GB HBM3", 79.2, "full_12.8b", Strategy(), r"LoRA fp8, one GPU \(.* GiB\): make train "),
        (
            "NVIDIA H100 80GB HBM3",
            79.2,
            "full_12.8b",
            Strategy(2, 2),
            r"full, ZeRO-3 \(.* GiB\): make train-zero3 NUM_GPUS=2 RECIPE=scripts/recipes/full_12.8b_zero3.yaml",
        ),
    ],
)
def test_the_refusal_names_the_nearest_way_that_fits(gpu, gib, recipe, strategy, nearest, monkeypatch):
    monkeypatch.setattr(dry_run, "gpu_total_bytes", lambda: int(gib * 2**30))
    monkeypatch.setattr(dry_run, "free_host_bytes", lambda: 128 * 2**30)
    monkeypatch.setattr(dry_run, "device_name", lambda: gpu)
    with pytest.raises(UserError) as refusal:
        dry_run.check_fit(load_recipe(f"scripts/recipes/{recipe}.yaml"), strategy)
    said = str(refusal.value).partition("the nearest that fits here is ")[2]
    assert re.match(nearest, said), str(refusal.value)


def test_for_a_gpu_that_is_not_known_nothing_is_named(monkeypatch):
    monkeypatch.setattr(dry_run, "gpu_total_bytes", lambda: 16 * 2**30)
    monkeypatch.setattr(dry_run, "device_name", lambda: "Some GPU")
    with pytest.raises(UserError) as refusal:
        dry_run.check_fit(load_recipe("scripts/recipes/lora_12.8b.yaml"), Strategy())
    assert "nearest" not in str(refusal.value)
