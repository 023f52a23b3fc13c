"""Which settings are tried: the recipe's own first, the better half longer, an end where that does not help."""

import math

import pytest

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.tuning.settings import (
    Setting,
    check_tunable,
    first_settings,
    flags,
    left_at_most,
    overrides,
    round_settings,
)

FIRST = [(1e-3, 1), (3e-3, 1), (3e-4, 1), (2e-3, 4), (6e-3, 4), (6e-4, 4)]
EPOCHS = (1.0, 2.0, 4.0)


def recipe(**keys):
    return make_recipe({"learning_rate": 1e-3, **keys})


def played(loss, first=FIRST, epochs=EPOCHS):
    """The rounds that a search goes through where `loss(setting)` is what a trial comes to."""
    losses, rounds = {}, []
    while settings := round_settings(first, epochs, losses):
        rounds.append(settings)
        trials, epochs_left = left_at_most(first, epochs, losses)
        assert trials >= len(settings)
        assert epochs_left >= sum(setting.epochs for setting in settings)
        losses |= {setting: loss(setting) for setting in settings}
    assert left_at_most(first, epochs, losses) == (0, 0.0)
    return rounds


def test_the_recipe_comes_first_and_another_batch_has_a_rate_that_fits_it():
    assert first_settings(recipe()) == [(1e-3, 1), (3e-3, 1), (0.000333, 1), (2e-3, 4), (6e-3, 4), (0.000667, 4)]
    large = first_settings(recipe(global_batch_size=32))
    assert large[0] == (1e-3, 32)
    assert large[3] == (5e-4, 8)


def test_named_rates_and_batches_are_all_combined():
    assert first_settings(recipe(), [1e-4, 1e-5], [2, 8]) == [(1e-4, 2), (1e-5, 2), (1e-4, 8), (1e-5, 8)]
    assert first_settings(recipe(), [], [2]) == [(1e-3, 2)]


def test_the_better_half_goes_on_while_longer_training_helps():
    rounds = played(lambda s: abs(math.log(s.learning_rate / 2e-3)) + 1 / s.epochs)
    assert [len(settings) for settings in rounds] == [6, 3, 2]
    assert rounds[0] == [Setting(rate, batch, 1.0) for rate, batch in FIRST]
    assert {(s.learning_rate, s.batch) for s in rounds[1]} == {(2e-3, 4), (1e-3, 1), (3e-3, 1)}
    assert {s.epochs for s in rounds[2]} == {4.0}
    assert left_at_most(FIRST, EPOCHS, {}) == (11, 6 + 3 * 2 + 2 * 4)


def test_it_ends_where_longer_training_does_not_help():
    assert [len(settings) for settings in played(lambda s: s.epochs)] == [6, 3]


def test_a_setting_that_diverged_does_not_go_on():
    rounds = played(lambda s: math.inf if s.learning_rate > 1e-3 else 1 / s.epochs)
    assert {s.learning_rate for s in rounds[1]} == {1e-3, 3e-4, 6e-4}
    assert [len(settings) for settings in played(lambda s: math.inf)] == [6]


def test_a_trial_is_the_recipe_but_for_its_setting():
    keys = overrides(recipe(global_batch_size=6, micro_batch_size=6), Setting(3e-4, 4, 0.5))
    assert keys["micro_batch_size"] == 2, "the largest that divides both"
    assert keys["keep"] == "best"
    assert keys["early_stopping"] == 2
    assert overrides(recipe(early_stopping=5), Setting(3e-4, 4, 0.5))["early_stopping"] == 5
    assert flags({"learning_rate": 3e-4, "global_batch_size": 4}) == [
        *("--learning-rate", "0.0003"),
        *("--global-batch-size", "4"),
    ]


@pytest.mark.parametrize(("keys", "word"), [({"max_steps": 5}, "--epochs"), ({"eval_strategy": "no"}, "validation")])
def test_what_cannot_be_compared_is_refused(keys, word):
    with pytest.raises(UserError, match=word):
        check_tunable(recipe(**keys))
