"""Memory and traffic on paper: the ZeRO paper's own example, and sums done by hand."""

import pytest

from llm_qa.config.recipe import load_recipe, make_recipe
from llm_qa.planning.memory import (
    Sizes,
    checkpoint_bytes,
    memory_per_gpu,
    sharing_rows,
    traffic_of_update,
    weight_bytes,
)

PAPER = Sizes(linear=7_500_000_000, other=0, trained=7_500_000_000)
FULL = make_recipe({"method": "full", "base_precision": "bf16"})


@pytest.mark.parametrize(("stage", "gigabytes"), [(2, 16.6), (3, 1.9)])
def test_the_papers_figure_1(stage, gigabytes):
    """7.5 billion weights on 64 GPUs: 16.6 GB under gradient sharing, 1.9 GB under parameter sharing."""
    assert memory_per_gpu(FULL, PAPER, stage, 64) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_the_papers_traffic():
    """Section 7: 2 numbers a weight for data parallelism and stage 2, 3 for stage 3, in 16 bits."""
    many = 10**6
    for stage, numbers in ((0, 2), (2, 2), (3, 3)):
        sent = traffic_of_update(FULL, PAPER, stage, many, passes=1).sent
        assert sent / (2 * PAPER.trained) == pytest.approx(numbers, rel=1e-5)
        assert traffic_of_update(FULL, PAPER, stage, 1, passes=1).sent == 0


def test_nf4_takes_half_a_byte_and_its_scales():
    sizes = Sizes(linear=64 * 256, other=10, trained=0)
    plain = make_recipe({"base_precision": "nf4", "double_quant": False})
    assert weight_bytes(plain, sizes) == 64 * 256 / 2 + 256 * 4 + 20  # one fp32 scale for 64 weights
    double = make_recipe({"base_precision": "nf4"})
    assert weight_bytes(double, sizes) == 64 * 256 / 2 + 256 + 4 + 20  # a byte each, one fp32 for 256 of them


def test_a_row_for_every_strategy():
    rows = sharing_rows(load_recipe("scripts/recipes/qlora_12.8b.yaml"), Sizes(10**10, 10**9, 10**7))
    assert [row[0] for row in rows] == ["one GPU or DDP", "ZeRO-2", "ZeRO-3"]
    assert all(len(row) == 5 for row in rows)


def test_full_training_in_bf16_takes_ten_bytes_a_weight_and_fits_one_h200():
    """Weight 2, gradient 2, two moments 4, compensation 2; with ZeRO on one GPU it would be 16."""
    sizes = Sizes(linear=12_898_631_680, other=0, trained=12_898_631_680)
    recipe = load_recipe("scripts/recipes/full_12.8b.yaml")
    assert memory_per_gpu(recipe, sizes, 0, 1) == 10 * sizes.trained < 139 * 2**30
    assert memory_per_gpu(recipe, sizes, 3, 1) == 16 * sizes.trained


@pytest.mark.parametrize(
    ("width", "optim", "stage", "expected"),
    [(4, "adamw_torch", 0, 12), (2, "adamw_torch", 0, 8), (4, "paged_adamw_8bit", 0, 6), (2, "adamw_torch", 1, 16)],
)
def test_bytes_of_a_checkpoint(width, optim, stage, expected):
    """The weight and what the optimizer keeps; DeepSpeed's engine writes the weight a second time."""
    assert checkpoint_bytes(width, optim, stage) == expected
