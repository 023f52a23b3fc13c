"""Going on with something else than a run began with: refused with the difference, or allowed by its name."""

import pytest

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.training.run_signature import check_same, differences, run_signature

BEFORE = {"learning_rate": 1e-4, "max_steps": 10, "save_steps": 5}


def signature(data="a" * 64, processes=1, **changes):
    return run_signature(make_recipe({**BEFORE, **changes}), data, processes)


def test_the_same_and_what_does_not_matter_pass_in_silence(capsys):
    check_same(signature(), signature(), [], "runs/x")
    check_same(signature(), signature(max_hours=2, save_total_limit=5), [], "runs/x")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("now", "kind", "words"),
    [
        (signature(max_steps=20), "recipe", "max_steps 10 -> 20"),
        (signature(data="b" * 64), "data", "the data aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        (signature(processes=4), "processes", "1 -> 4 processes"),
    ],
)
def test_each_kind_is_refused_with_the_difference_and_allowed_by_name(now, kind, words, capsys):
    assert differences(signature(), now) == {kind: [words]}
    with pytest.raises(UserError) as refused:
        check_same(signature(), now, [other for other in ("recipe", "data", "processes") if other != kind], "runs/x")
    assert words in str(refused.value)
    assert f"--allow-change {kind}," in str(refused.value)
    check_same(signature(), now, [kind], "runs/x")
    assert f"changed since runs/x: {words}" in capsys.readouterr().out


def test_all_differences_are_told_at_once():
    now = signature(data="b" * 64, processes=2, max_steps=20, seed=7)
    with pytest.raises(
        UserError, match=r"max_steps 10 -> 20; seed 42 -> 7; the data .*--allow-change recipe data proc"
    ):
        check_same(signature(), now, [], "runs/x")


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"save_steps": 2}, {"seed": 1}, {"lora_r": 4}])
def test_what_the_checkpoint_itself_keeps_cannot_be_allowed(change):
    with pytest.raises(UserError, match=f"--allow-change cannot change: {next(iter(change))}"):
        check_same(signature(), signature(**change), ["recipe"], "runs/x")
