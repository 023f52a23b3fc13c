"""Peak memory on paper beside what was measured. The rows and their cards stand in the README that each names."""

import pytest

from llm_qa.config.recipe import load_recipe
from llm_qa.planning.footprint import Work, peak_by_part
from llm_qa.planning.memory import Sizes

D, LAYERS, ALL = 5120, 40, 12_893_603_840
LINEAR = LAYERS * 12 * D * D
ADAPTER = LAYERS * 8 * 16 * D
FAST = "llm_qa/models/fast/README.md, one of two H100, 2026-11-26"
SCALING = "accelerate_configs/README.md, four H100, 2026-11-26"
H200 = "accelerate_configs/README.md, H200, 2026-11-26"
QLORA, LORA, FULL, ZERO3 = "qlora_12.8b", "lora_12.8b", "full_12.8b", "full_12.8b_zero3"
# recipe, tokens a pass, layers recomputed, inputs on host, ZeRO stage, GPUs, measured GiB, source
ROWS = [
    (QLORA, 8192, 0, False, 0, 1, 65.6, FAST),
    (QLORA, 2048, 0, False, 0, 1, 39.2, FAST),
    (QLORA, 8192, 40, False, 0, 1, 11.8, FAST),
    (QLORA, 8192, 29, False, 0, 1, 19.7, FAST),
    (QLORA, 8192, 38, False, 0, 1, 12.6, FAST),
    (QLORA, 8192, 0, False, 0, 2, 65.7, SCALING),
    (QLORA, 8192, 0, False, 0, 4, 65.7, SCALING),
    (QLORA, 8192, 0, False, 2, 2, 66.0, SCALING),
    (QLORA, 8192, 0, False, 2, 4, 65.9, SCALING),
    (LORA, 8192, 40, False, 0, 1, 29.2, H200),
    (FULL, 2048, 40, True, 0, 1, 121.6, H200),
    (ZERO3, 8192, 40, False, 3, 2, 67.4, H200),
    (ZERO3, 8192, 40, False, 3, 4, 37.3, SCALING),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row[:6])))
def test_peak_memory_is_within_3_percent_of_measured(row):
    name, tokens, recomputed, on_host, stage, gpus, measured, _ = row
    recipe = load_recipe(f"scripts/recipes/{name}.yaml")
    sizes = Sizes(LINEAR, ALL - LINEAR, ADAPTER if recipe.method == "lora" else ALL)
    parts = peak_by_part(recipe, sizes, Work(LAYERS, D, tokens, recomputed, on_host), stage, gpus)
    print(f"{sum(parts.values()) / 2**30:.2f} predicted, {measured} measured")
    assert sum(parts.values()) / 2**30 == pytest.approx(measured, rel=0.03)
