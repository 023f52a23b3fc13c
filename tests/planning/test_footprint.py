"""Memory and speed on paper beside what was measured (`measured.py` has the rows, their GPUs and sources)."""

import pytest

from llm_qa.planning.measured import MEASURED
from llm_qa.planning.speed import MEASURED_WITHIN
from llm_qa.planning.ways import predicted


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
