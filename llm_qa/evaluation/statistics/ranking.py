"""Ranks all models of a report (tuned, bases, nearest training answers), and says which are clearly better.

Sorted by character F1. "Clearly better" is the result of the paired test, corrected for all tests of the report, so the
order of two models need not be significant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Any

from llm_qa import files
from llm_qa.data.readers.kobest import TASKS
from llm_qa.evaluation.evaluations import Evaluation
from llm_qa.evaluation.metrics.catalogue import BITS_PER_CHARACTER, CHARACTER_F1, MEASURES
from llm_qa.evaluation.statistics.comparison import BETTER, TRIALS, WORSE, apply_holm, compare_predictions
from llm_qa.evaluation.statistics.scoring import text_scores
from llm_qa.language import later, tr

PAIR_MEASURES = (CHARACTER_F1, BITS_PER_CHARACTER)  # measures of the tests between models
NEAREST_NAME = later("nearest training answer")
OF_TUNED, OF_BASE = (files.TUNED, files.TUNED_WITH), (files.BASE, files.BASE_WITH)


@dataclass(frozen=True)
class PairwiseComparison:
    """Two entries by rank, the better one first, and their comparison (first as "tuned", second as "base")."""

    first: int
    second: int
    comparison: dict[str, Any]


@dataclass(frozen=True)
class Ranking:
    """Entries with those they beat, pairwise comparisons, the runs' corrected comparisons with their bases (on the
    report's data and on KoBEST), and the number of tests."""

    entries: list[Entry]
    pairwise_comparisons: list[PairwiseComparison]
    against_base: dict[int, dict[str, Any]]
    kobest: dict[int, dict[str, Any]]
    tests: int


@dataclass(frozen=True)
class Entry:
    """One model of the ranking; `runs` are the indices of its runs in the report; a shared base has several."""

    label: str  # files.TUNED, BASE, NEAREST, TUNED_WITH or BASE_WITH
    runs: tuple[int, ...]
    name: str
    evaluation: Evaluation
    hours: float | None = None  # wall-clock hours of training times processes
    rank: int = 0
    beats: tuple[int, ...] = ()  # ranks of the models that it is clearly better than

    @property
    def scores(self) -> dict[str, Any]:
        """The scores of scores.json."""
        return self.evaluation.scores

    def question_f1(self) -> list[float]:
        """Character F1 of every answer, lowest first."""
        return sorted(
            text_scores(row["prediction"], tuple(row["references"]))[CHARACTER_F1] for row in self.evaluation.rows
        )


def rank_entries(
    names: Sequence[str], evaluations: Sequence[dict[str, Evaluation]], hours: Sequence[float | None]
) -> list[Entry]:
    """Every model once, best character F1 first; bases with the same answers are one entry, as are copied answers.

    `evaluations` holds, for each run, label -> evaluation.
    """
    entries: list[Entry] = []
    for run, labelled in enumerate(evaluations):
        for label, evaluation in labelled.items():
            alike = [i for i, e in enumerate(entries) if label == e.label not in OF_TUNED and _alike(e, evaluation)]
            if alike:
                entries[alike[0]] = replace(entries[alike[0]], runs=(*entries[alike[0]].runs, run))
            else:
                trained = hours[run] if label in OF_TUNED else None
                entries.append(Entry(label, (run,), names[run], evaluation, trained))
    several = sum(entry.label == files.NEAREST for entry in entries) > 1
    entries.sort(key=lambda entry: (-(entry.scores["metrics"][CHARACTER_F1]["value"] or 0), entry.label))
    return [replace(e, rank=i, name=_shown_name(e, names, several)) for i, e in enumerate(entries, 1)]


def _shown_name(entry: Entry, names: Sequence[str], several_nearest: bool) -> str:
    asked = tr(" with references") if entry.label in (files.TUNED_WITH, files.BASE_WITH) else ""
    if entry.label in OF_TUNED:
        return entry.name + asked
    whose = ", ".join(names[run] for run in entry.runs[:2])
    if len(entry.runs) > 2:
        whose += tr(" and {count} more", count=len(entry.runs) - 2)
    if entry.label in OF_BASE:
        return tr("base of {whose}", whose=whose) + asked
    return tr("nearest training answer of {whose}", whose=whose) if several_nearest else tr(NEAREST_NAME)


def _alike(entry: Entry, evaluation: Evaluation) -> bool:
    given = ("id", "question_index", "prediction", "reference_bits")
    one, other = ([[row[key] for key in given] for row in e.rows] for e in (entry.evaluation, evaluation))
    return one == other


def most_tests(entries: list[Entry], runs_with_base: int, runs_with_kobest: int) -> int:
    """The largest number of tests in a report of these entries (`compare_entries`)."""
    pairs = comb(sum(entry.label not in OF_BASE for entry in entries), 2)
    return runs_with_base * len(MEASURES) + runs_with_kobest * len(TASKS) + pairs * len(PAIR_MEASURES)


def compare_entries(
    entries: list[Entry],
    against_base: dict[int, dict[str, Any]],
    kobest: dict[int, dict[str, Any]],
    *,
    seed: int,
    resamples: int,
    trials: int = TRIALS,
) -> Ranking:
    """Compare the entries of a report with each other, and correct all of its tests.

    `against_base` has each run's comparison with its base, and `kobest` the result of `tested_tasks` for it. In
    addition, tuned models (with references too) and copied answers are compared with each other on PAIR_MEASURES.
    """
    rivals = [entry for entry in entries if entry.label not in OF_BASE]
    pairs = list(combinations(rivals, 2))
    compared = [
        compare_predictions(
            other.evaluation.rows,
            one.evaluation.rows,
            seed=seed,
            resamples=resamples,
            trials=trials,
            name=one.name,
            groups=False,
        )
        for one, other in pairs
    ]
    tested = [*against_base.values(), *kobest.values(), *compared]
    keys = [tuple(MEASURES)] * len(against_base) + [TASKS] * len(kobest) + [PAIR_MEASURES] * len(compared)
    corrected = apply_holm(tested, keys)
    rest = iter(corrected)
    runs, tasks = (dict(zip(of, rest, strict=False)) for of in (against_base, kobest))
    pairwise_comparisons = [
        PairwiseComparison(one.rank, other.rank, c) for (one, other), c in zip(pairs, rest, strict=True)
    ]
    met = [(pairwise.first, pairwise.second, pairwise.comparison) for pairwise in pairwise_comparisons]
    for run, comparison in runs.items():
        of_run = {entry.label: entry for entry in entries if run in entry.runs}
        mine, base = of_run[files.TUNED], of_run[files.BASE]
        met.append((mine.rank, base.rank, comparison))
    beaten: dict[int, set[int]] = {entry.rank: set() for entry in entries}
    for one, other, comparison in met:
        outcome = comparison["metrics"][CHARACTER_F1]["outcome"]
        if outcome == BETTER:
            beaten[one].add(other)
        elif outcome == WORSE:
            beaten[other].add(one)
    tests = corrected[0]["tests"] if corrected else 0
    ranked = [replace(entry, beats=tuple(sorted(beaten[entry.rank]))) for entry in entries]
    return Ranking(ranked, pairwise_comparisons, runs, tasks, tests)
