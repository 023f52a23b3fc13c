"""Two models' choices on the same multiple-choice items: macro F1 and accuracy, their intervals, and a paired test.

Macro F1 is not a ratio of sums over items, which `scoring.py` resamples. But it depends only on the number of items
with each combination of (right, base's, tuned's) choice, a cell: drawing items with replacement gives multinomial
counts, and swapping the models' answers item by item gives binomial counts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from llm_qa.evaluation.statistics.comparison import TRIALS
from llm_qa.evaluation.statistics.scoring import RESAMPLES, interval

Score = Callable[[np.ndarray], np.ndarray]  # (..., classes, classes) items by right and chosen class -> (...)


def macro_f1(items: Sequence[tuple[Hashable, Hashable]]) -> float:
    """The mean over classes of F1, from (right, chosen) pairs; classes that occur in neither are left out."""
    classes, (right, told) = _numbered([gold for gold, _ in items], [told for _, told in items])
    counts = np.bincount(right * classes + told, minlength=classes**2)
    return float(macro_f1_of_counts(counts.reshape(classes, classes)))


def macro_f1_of_counts(counts: np.ndarray) -> np.ndarray:
    """`macro_f1` of (..., classes, classes) counts of items by right class (rows) and chosen class -> (...)."""
    same = np.diagonal(counts, axis1=-2, axis2=-1)
    met = counts.sum(axis=-1) + counts.sum(axis=-2)
    return (2 * same / np.maximum(met, 1)).sum(axis=-1) / (met > 0).sum(axis=-1)


def accuracy_of_counts(counts: np.ndarray) -> np.ndarray:
    """Share of items whose chosen class is the right one, from the same counts."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))


def compare_choices(
    right: Sequence[Hashable],
    base: Sequence[Hashable],
    tuned: Sequence[Hashable],
    score: Score = macro_f1_of_counts,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    trials: int = TRIALS,
) -> dict[str, Any]:
    """Both models' score with 95% percentile intervals over items, the paired difference, and its two-sided p.

    Returns {"records", "better", "base", "base_low", "base_high", "tuned", "tuned_low", "tuned_high", "difference",
    "low", "high", "p_value"}; intervals and p are None for one item. The p is `comparison.py`'s randomisation test
    with each item as a group.
    """
    classes, (gold, before, after) = _numbered(right, base, tuned)
    cells = np.bincount((gold * classes + before) * classes + after, minlength=classes**3)
    values = _both(cells, classes, score)
    records = len(gold)
    found: dict[str, Any] = {
        "records": records,
        "better": "higher",
        "base": float(values[0]),
        "tuned": float(values[1]),
    }
    found["difference"] = found["tuned"] - found["base"]
    generator = np.random.default_rng(seed)
    draws = _both(generator.multinomial(records, cells / records, size=resamples), classes, score)
    spans = (("base_", draws[0]), ("tuned_", draws[1]), ("", draws[1] - draws[0]))
    for name, drawn in spans:
        found[f"{name}low"], found[f"{name}high"] = interval(drawn) if records > 1 else (None, None)
    cube = cells.reshape(classes, classes, classes)
    swapped = generator.binomial(cube, 0.5, size=(trials, *cube.shape))
    exchanged = cube - swapped + swapped.swapaxes(-1, -2)
    one, other = _both(exchanged.reshape(trials, -1), classes, score)
    extreme = 1 + int((np.abs(other - one) >= abs(found["difference"]) - 1e-9).sum())
    return {**found, "p_value": extreme / (trials + 1) if records > 1 else None}


def _numbered(*columns: Sequence[Hashable]) -> tuple[int, list[np.ndarray]]:
    """Number of classes, and each column as int64 class numbers."""
    place = {value: i for i, value in enumerate(sorted({value for column in columns for value in column}, key=str))}
    return len(place), [np.array([place[value] for value in column], dtype=np.int64) for column in columns]


def _both(cells: np.ndarray, classes: int, score: Score) -> tuple[np.ndarray, np.ndarray]:
    """The base's and the tuned model's score from (..., classes ** 3) counts."""
    cube = cells.reshape(*cells.shape[:-1], classes, classes, classes)
    return score(cube.sum(axis=-1)), score(cube.sum(axis=-2))
