"""Multiple choice: macro F1 by hand and by a slow reading, intervals against formulas, the test against enumeration."""

import itertools
import random
from statistics import NormalDist

import numpy as np
import pytest

from llm_qa.evaluation.statistics.choices import accuracy_of_counts, compare_choices, macro_f1, macro_f1_of_counts


def slow_macro_f1(items):
    """Class by class, item by item."""
    scores = []
    for wanted in {value for pair in items for value in pair}:
        same = sum(gold == told == wanted for gold, told in items)
        met = sum((gold == wanted) + (told == wanted) for gold, told in items)
        scores.append(2 * same / met)
    return sum(scores) / len(scores)


def drawn_choices(items, *, classes=4, seed=0, right_share=(0.5, 0.6)):
    """(right, base's, tuned's) choices of `items` items."""
    rng = random.Random(seed)
    right = [rng.randrange(classes) for _ in range(items)]
    told = [[gold if rng.random() < p else rng.randrange(classes) for gold in right] for p in right_share]
    return right, *told


def test_macro_f1_by_hand():
    """Class 0: precision 1/2, recall 1 -> 2/3; class 1: precision 1, recall 1/2 -> 2/3."""
    assert macro_f1([(0, 0), (1, 0), (1, 1)]) == pytest.approx(2 / 3)
    assert macro_f1([(0, 0), (1, 1)]) == 1.0
    assert macro_f1([(0, 1), (0, 1)]) == 0.0
    assert macro_f1([(0, 0), (0, 0), (1, 0), (1, 0)]) == pytest.approx((2 / 3 + 0) / 2)  # one class is never told


def test_macro_f1_is_the_slow_one():
    for seed in range(50):
        right, told, _ = drawn_choices(1 + seed, seed=seed)
        pairs = list(zip(right, told, strict=True))
        assert macro_f1(pairs) == pytest.approx(slow_macro_f1(pairs), abs=1e-15)


@pytest.mark.optional
def test_macro_f1_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="the optional lm-eval is not installed")
    right, told, _ = drawn_choices(50)
    assert macro_f1(list(zip(right, told, strict=True))) == pytest.approx(
        metrics.f1_score(right, told, average="macro")
    )


def test_an_accuracys_interval_is_the_binomials():
    """The harness's own standard error, sqrt(p (1 - p) / (n - 1)), gives the same within what 2,000 draws scatter."""
    right, base, tuned = drawn_choices(1000)
    found = compare_choices(right, base, tuned, accuracy_of_counts)
    for label, told in (("base", base), ("tuned", tuned)):
        p = np.mean([one == other for one, other in zip(right, told, strict=True)])
        half = NormalDist().inv_cdf(0.975) * np.sqrt(p * (1 - p) / 999)
        assert found[label] == p
        assert found[f"{label}_low"] == pytest.approx(p - half, abs=0.1 * half)
        assert found[f"{label}_high"] == pytest.approx(p + half, abs=0.1 * half)


def test_intervals_are_those_of_drawing_items():
    right, base, tuned = drawn_choices(200, classes=2)
    found = compare_choices(right, base, tuned)
    items = list(zip(right, base, tuned, strict=True))
    rng = random.Random(1)
    draws = [rng.choices(items, k=200) for _ in range(2000)]
    before, after = ([slow_macro_f1([(item[0], item[i]) for item in drawn]) for drawn in draws] for i in (1, 2))
    spans = {"base_": before, "tuned_": after, "": np.subtract(after, before)}
    for name, values in spans.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert found[f"{name}low"] == pytest.approx(low, abs=0.1 * (high - low))
        assert found[f"{name}high"] == pytest.approx(high, abs=0.1 * (high - low))
    assert found["difference"] == found["tuned"] - found["base"]


@pytest.mark.parametrize("seed", range(3))
def test_p_is_that_of_all_exchanges(seed):
    """Ten items: 1,024 ways of swapping the two models' answers."""
    right, base, tuned = drawn_choices(10, classes=2, seed=seed, right_share=(0.1, 0.9))
    found = compare_choices(right, base, tuned)
    extreme = 0
    for swaps in itertools.product((False, True), repeat=10):
        pairs = [(t, b) if swap else (b, t) for swap, b, t in zip(swaps, base, tuned, strict=True)]
        one, other = (slow_macro_f1(list(zip(right, told, strict=True))) for told in zip(*pairs, strict=True))
        extreme += abs(other - one) >= abs(found["difference"]) - 1e-9
    assert found["p_value"] == pytest.approx(extreme / 1024, abs=0.02)


def test_the_same_choices_do_not_differ_and_one_item_says_nothing():
    right, base, _ = drawn_choices(20)
    found = compare_choices(right, base, base)
    assert (found["difference"], found["low"], found["high"], found["p_value"]) == (0, 0, 0, 1)
    one = compare_choices([0], [1], [0])
    assert (one["base"], one["tuned"], one["low"], one["tuned_high"], one["p_value"]) == (0, 1, None, None, None)


def test_the_same_choices_give_the_same_digits():
    right, base, tuned = drawn_choices(100)
    assert compare_choices(right, base, tuned) == compare_choices(right, base, tuned)
    names = [[f"class {label}" for label in column] for column in (right, base, tuned)]
    assert compare_choices(*names) == compare_choices(right, base, tuned)


def test_counts_may_be_stacked():
    counts = np.random.default_rng(0).integers(0, 5, size=(3, 2, 4, 4)) + 1
    for score in (macro_f1_of_counts, accuracy_of_counts):
        assert score(counts).shape == (3, 2)
        assert score(counts)[1, 1] == score(counts[1, 1])
