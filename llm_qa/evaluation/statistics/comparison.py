"""Paired comparison of two models that answered the same questions.

The interval of the difference is a paired bootstrap over groups (Koehn 2004), in which easy and hard questions cancel.
The p-value is from a randomisation test that swaps the two models' answers group by group (Riezler & Maxwell 2005),
with Holm's correction for all tests of a report. The unit is the group of records that share a question or an answer:
their differences are correlated, and swapping records one by one would make two equal models look different. A
difference is always tuned minus base; bits per character are better when lower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llm_qa.console import UserError
from llm_qa.evaluation.metrics.catalogue import EMBEDDING_COSINE, MEASURES, is_number
from llm_qa.evaluation.statistics.grouping import group_rows, with_groups
from llm_qa.evaluation.statistics.scoring import (
    CONFIDENCE,
    RESAMPLES,
    GroupSums,
    check_rows,
    counts,
    group_sums,
    interval,
    ratios,
    resampled_ratios,
)
from llm_qa.language import later

TRIALS = 10_000  # random swaps at least, where not every swap is tried: the smallest p is then 1 / 10,001
ALPHA = 1 - CONFIDENCE

BETTER, WORSE, UNCLEAR = later("better"), later("worse"), later("not distinguishable")
MIXED, FEW = later("mixed"), later("too few records")


def compare_predictions(
    base_rows: list[dict[str, Any]],
    tuned_rows: list[dict[str, Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    trials: int = TRIALS,
    name: str = "this run",
    groups: bool = True,
) -> dict[str, Any]:
    """Paired comparison of two predictions.jsonl of the same questions; JSON-serialisable, deterministic.

    Returns record_groups, records, questions, metrics {key: {base, tuned, difference, low, high, p_value, p_holm,
    outcome, better, groups}} and groups {grouping: {name: the same without p and outcome}}. `p_value` is two-sided;
    `p_holm` and `outcome` are corrected for the tests of this comparison; `apply_holm` corrects them for a whole
    report. With `groups` False the groupings are left out. Raises UserError when the questions or references differ.
    """
    check_rows(base_rows, f"the base predictions of {name}")
    check_rows(tuned_rows, f"the predictions of {name}")
    base_rows = _matched(base_rows, tuned_rows, name)
    base_rows, tuned_rows = _known_to_both(base_rows, with_groups(tuned_rows))
    base = group_sums(base_rows, what="base answers")
    tuned = group_sums(tuned_rows, what="tuned answers")

    def part(places: list[int]) -> dict[str, Any]:
        sums = (group_sums([rows[i] for i in places]) for rows in (base_rows, tuned_rows))
        return paired_differences(*sums, seed=seed, resamples=resamples)

    grouped = group_rows(tuned_rows) if groups else {}
    parts = {grouping: {name: part(places) for name, places in of.items()} for grouping, of in grouped.items()}
    whole = paired_differences(base, tuned, seed=seed, resamples=resamples)
    p_values = randomisation_p_values(base, tuned, seed=seed, trials=trials)
    for p_value, values in zip(p_values, whole["metrics"].values(), strict=True):
        testable = values["better"] and values["difference"] is not None
        values["p_value"] = p_value if testable else None
    settings = {"confidence": CONFIDENCE, "resamples": resamples, "trials": trials, "seed": seed}
    return apply_holm([{**whole, "groups": parts, **settings}])[0]


def randomisation_p_values(base: GroupSums, tuned: GroupSums, *, seed: int, trials: int = TRIALS) -> list[float]:
    """Two-sided p of each measure's difference if the two models' answers were exchangeable, group by group.

    p is the share of swaps with at least the models' difference. All swaps are tried where there are no more than
    `trials`; else `trials` random ones, in which each group is swapped with probability 1/2, and the unswapped models
    are counted too (Davison & Hinkley 1997, 4.2).
    """
    pair = [(sums.numerators, sums.denominators) for sums in (base, tuned)]
    (base_top, base_low), (tuned_top, tuned_low) = [(top.sum(axis=0), low.sum(axis=0)) for top, low in pair]
    change_top, change_low = (one - other for one, other in zip(*pair, strict=True))
    observed = np.abs(ratios(tuned_top, tuned_low) - ratios(base_top, base_low))
    extreme, tried = np.zeros(len(MEASURES)), 0
    for swapped in _swaps(len(base.names), seed=seed, trials=trials):
        top, low = (np.einsum("tg,gm->tm", swapped, change) for change in (change_top, change_low))
        differences = ratios(tuned_top + top, tuned_low + low) - ratios(base_top - top, base_low - low)
        extreme += (np.abs(differences) >= observed - 1e-9 * np.maximum(observed, 1)).sum(axis=0)
        tried += len(swapped)
    return (extreme / tried).tolist()


def _swaps(groups: int, *, seed: int, trials: int) -> Iterator[np.ndarray]:
    """Blocks of (swaps, groups) float64, 1 where a group's answers are swapped; one row swaps none."""
    if 2**groups <= trials:
        yield (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(np.float64)
        return
    yield np.zeros((1, groups))
    generator = np.random.default_rng(seed)
    block = max(1, 2_000_000 // groups)
    for begin in range(0, trials, block):
        yield generator.integers(0, 2, size=(min(block, trials - begin), groups)).astype(np.float64)


def trials_needed(tests: int) -> int:
    """Trials with which one of `tests` results can be significant: 2 * tests / 5%, at least TRIALS."""
    return max(TRIALS, round(2 * tests / ALPHA))


def groups_needed(tests: int) -> int:
    """The fewest groups with which one of `tests` results can be significant after Holm's correction.

    Of the 2^n swaps of n groups at least two (none and all) differ as much as the models do, so p is never below
    2^(1 - n), and Holm's first step multiplies the smallest p by the number of tests: 9 groups for 11 tests.
    """
    groups = 1
    while max(tests, 1) * 2.0 ** (1 - groups) >= ALPHA:
        groups += 1
    return groups


def apply_holm(
    comparisons: Sequence[dict[str, Any]], keys: Sequence[Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """The comparisons with `p_holm`, `outcome`, `tests` and `groups_needed` corrected for all their tests (Holm 1979).

    `keys` lists the tested measures of each comparison (default: all); the others get no p_holm and outcome. As
    "better" and "worse" need p_holm below 0.05, the probability that any of them in a report is wrong is at most 5%,
    whatever the correlation of the measures.
    """
    tested = [set(names) for names in keys] if keys is not None else [set(MEASURES)] * len(comparisons)
    metrics = [
        {key: {**values, "p_holm": None, "outcome": None} for key, values in comparison["metrics"].items()}
        for comparison in comparisons
    ]
    family = [
        values
        for names, measured in zip(tested, metrics, strict=True)
        for key, values in measured.items()
        if key in names and is_number(values["p_value"])
    ]
    for values, p in zip(family, holm([values["p_value"] for values in family]), strict=True):
        values["p_holm"] = p
    needed = groups_needed(len(family))
    for names, measured in zip(tested, metrics, strict=True):
        for key in names & measured.keys():
            measured[key]["outcome"] = _outcome(measured[key], needed)
    return [
        {**comparison, "metrics": measured, "tests": len(family), "groups_needed": needed}
        for comparison, measured in zip(comparisons, metrics, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times their number, the next times one less, made monotone."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = least
    return corrected


def _matched(base_rows: list[dict], tuned_rows: list[dict], name: str) -> list[dict]:
    """The base rows in the tuned rows' order; UserError where questions or references differ."""
    remedy = f"evaluate both on the same data (.venv/bin/python scripts/evaluate.py --run {name} --base)"
    base = {(row["id"], row["question_index"]): row for row in base_rows}
    tuned = {(row["id"], row["question_index"]) for row in tuned_rows}
    if different := sorted(base.keys() ^ tuned):
        raise UserError(
            f"The base and tuned predictions of {name} are not of the same questions ({len(different)} differ, "
            f"the first is question {different[0][1]} of record {different[0][0]}): {remedy}."
        )
    ordered = [base[row["id"], row["question_index"]] for row in tuned_rows]
    for one, other in zip(ordered, tuned_rows, strict=True):
        if any(one[key] != other[key] for key in ("references", "category", "reference_characters")):
            raise UserError(
                f"The base and tuned predictions of {name} have other references, or another category, for question "
                f"{other['question_index']} of record {other['id']}: {remedy}."
            )
    return ordered


def _known_to_both(base_rows: list[dict], tuned_rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Keep bits and cosines only where both models have them; groups are the tuned model's."""

    def masked(row: dict, other: dict) -> dict:
        pairs = zip(row["reference_bits"], other["reference_bits"], strict=True)
        known = [bits if is_number(bits) and is_number(theirs) else None for bits, theirs in pairs]
        cosine = row.get(EMBEDDING_COSINE) if is_number(other.get(EMBEDDING_COSINE)) else None
        return {**row, "reference_bits": known, EMBEDDING_COSINE: cosine}

    pairs = list(zip(base_rows, tuned_rows, strict=True))
    return [masked(b, t) | {"group": t["group"]} for b, t in pairs], [masked(t, b) for b, t in pairs]


def paired_differences(base: GroupSums, tuned: GroupSums, *, seed: int, resamples: int) -> dict[str, Any]:
    """Counts, and for each measure both models' values and their difference with its 95% interval over groups."""
    width = len(MEASURES)
    numerators = np.hstack([base.numerators, tuned.numerators])
    denominators = np.hstack([base.denominators, tuned.denominators])
    values = ratios(numerators.sum(axis=0), denominators.sum(axis=0))
    blocks = resampled_ratios(numerators, denominators, seed=seed, resamples=resamples)
    draws = np.concatenate([block[:, width:] - block[:, :width] for block in blocks], axis=0)
    metrics = {}
    for column, (key, measure) in enumerate(MEASURES.items()):
        before, after = float(values[column]), float(values[column + width])
        counted = int(((base.counted[:, column] > 0) & (tuned.counted[:, column] > 0)).sum())
        known = np.isfinite(after - before)
        low, high = interval(draws[:, column]) if counted > 1 else (None, None)
        metrics[key] = {
            "base": before if known else None,
            "tuned": after if known else None,
            "difference": after - before if known else None,
            "low": low,
            "high": high,
            "better": measure.better,
            "groups": counted,
        }
    return {**counts(tuned), "metrics": metrics}


def _outcome(values: dict[str, Any], needed: int) -> str | None:
    """The outcome of the corrected test; None where the measure has no better direction or is unknown."""
    if values["better"] is None or values["difference"] is None:
        return None
    if values["groups"] < needed or values["p_holm"] is None:
        return FEW
    if values["p_holm"] >= ALPHA:
        return UNCLEAR
    return BETTER if (values["difference"] > 0) == (values["better"] == "higher") else WORSE
