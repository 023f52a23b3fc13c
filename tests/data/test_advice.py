"""What prepare_data.py says at its end."""

from pathlib import Path

import pytest

from llm_qa.data.advice import advice, next_command


def manifest(test_groups: int, groups: int, single: int, records: int, share: float = 0.1):
    splits = {"train": {"records": records, "one_phrasing": single}, "test": {"records": 0, "one_phrasing": 0}}
    return {"test_groups": test_groups, "groups": groups, "splits": splits, "options": {"test": share}}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            manifest(4, 36, 35, 36),
            "4 groups of records held out, about facts that the model is not taught: too few for a "
            "verdict, which needs 9, so prepare anew with --test 0.3 --overwrite",
        ),
        (manifest(20, 200, 0, 200), "enough for a verdict, which needs 9"),
        (
            manifest(1, 12, 0, 12),
            "1 group of records held out, about facts that the model is not taught: too few for a "
            "verdict, which needs 9, so add records",
        ),
        (manifest(0, 40, 0, 40, 0.0), "no record is held out"),
    ],
)
def test_whether_the_test_can_carry_a_verdict(made, said):
    assert said in advice(made, 9)[0]


def test_facts_asked_in_one_way_and_the_next_command():
    lines = advice(manifest(9, 90, 45, 90), 9)
    assert lines[1].startswith("phrasings: 45 of 90 records are asked in one way only")
    assert len(advice(manifest(9, 90, 44, 90), 9)) == 1
    assert "DATA=data/mine RUN=runs/mine" in next_command(manifest(9, 90, 45, 90), Path("data/mine"))
