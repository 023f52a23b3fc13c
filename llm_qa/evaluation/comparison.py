"""Is the tuned model better than its base? Paired bootstrap over records, verdict, samples.

Both models' answers to the same drawn records are compared in each draw (Koehn 2004), so that easy and hard records
cancel. A difference is always tuned minus base; bits per character are better when lower.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_qa.console import UserError
from llm_qa.evaluation.metrics.catalogue import BITS_PER_CHARACTER, CHARACTER_F1, MEASURES, is_number
from llm_qa.evaluation.metrics.measures import character_f1
from llm_qa.evaluation.scoring import (
    CONFIDENCE,
    RESAMPLES,
    RecordSums,
    by_category,
    check_rows,
    interval,
    ratios,
    record_sums,
    resampled_ratios,
)

# With 5 pairs even five wins out of five happen by chance in 2 of 32 cases (sign test, p = .06): no verdict below 6.
MINIMUM_RECORDS = 6

BETTER, WORSE, UNCLEAR, MIXED, FEW = "better", "worse", "not distinguishable", "mixed", "too few records"


def compare_predictions(
    base_rows: list[dict[str, Any]],
    tuned_rows: list[dict[str, Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    name: str = "this run",
) -> dict[str, Any]:
    """Paired comparison of two predictions.jsonl of the same questions; JSON-serialisable, deterministic.

    Returns records, questions, metrics {key: {base, tuned, difference, low, high, p_value, better, reading, records}}
    and categories {name: the same}. `p_value` is two-sided: twice the smaller share of draws on either side of 0, with
    one draw added to each (Davison & Hinkley 1997, 4.2). Raises UserError when the questions or references differ.
    """
    check_rows(base_rows, f"the base predictions of {name}")
    check_rows(tuned_rows, f"the predictions of {name}")
    base_rows = _matched(base_rows, tuned_rows, name)
    base_rows, tuned_rows = _known_to_both(base_rows, tuned_rows)
    base = record_sums(base_rows, what="base answers")
    tuned = record_sums(tuned_rows, what="tuned answers")
    base_parts, tuned_parts = by_category(base), by_category(tuned)
    return {
        **_paired(base, tuned, seed=seed, resamples=resamples),
        "categories": {
            part: _paired(base_parts[part], tuned_parts[part], seed=seed, resamples=resamples) for part in tuned_parts
        },
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "seed": seed,
    }


def _matched(base_rows: list[dict], tuned_rows: list[dict], name: str) -> list[dict]:
    """The base rows in the tuned rows' order; UserError where they are not the same questions with the same answers."""
    remedy = f"evaluate both on the same data (python scripts/evaluate.py --run {name} --base)"
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
    """Count a reference's bits only where both models have them (None: longer than its context)."""

    def masked(row: dict, other: dict) -> dict:
        pairs = zip(row["reference_bits"], other["reference_bits"], strict=True)
        known = [bits if is_number(bits) and is_number(theirs) else None for bits, theirs in pairs]
        return {**row, "reference_bits": known}

    pairs = list(zip(base_rows, tuned_rows, strict=True))
    return [masked(b, t) for b, t in pairs], [masked(t, b) for b, t in pairs]


def _paired(base: RecordSums, tuned: RecordSums, *, seed: int, resamples: int) -> dict[str, Any]:
    width = len(MEASURES)
    numerators = np.hstack([base.numerators, tuned.numerators])
    denominators = np.hstack([base.denominators, tuned.denominators])
    values = ratios(numerators.sum(axis=0), denominators.sum(axis=0))
    blocks = resampled_ratios(numerators, denominators, seed=seed, resamples=resamples)
    draws = np.concatenate([block[:, width:] - block[:, :width] for block in blocks], axis=0)
    metrics = {}
    for column, (key, measure) in enumerate(MEASURES.items()):
        before, after = float(values[column]), float(values[column + width])
        counted = int((denominators[:, column] > 0).sum())
        known = np.isfinite(after - before)
        low, high = interval(draws[:, column]) if counted > 1 else (None, None)
        metrics[key] = {
            "base": before if known else None,
            "tuned": after if known else None,
            "difference": after - before if known else None,
            "low": low,
            "high": high,
            "p_value": _p_value(draws[:, column]) if counted > 1 else None,
            "better": measure.better,
            "reading": _reading(measure.better, low, high, counted),
            "records": counted,
        }
    return {"records": len(tuned.ids), "questions": int(tuned.questions.sum()), "metrics": metrics}


def _p_value(draws: np.ndarray) -> float | None:
    draws = draws[np.isfinite(draws)]
    if not draws.size:
        return None
    smaller = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (draws.size + 1))


def _reading(better: str | None, low: float | None, high: float | None, records: int) -> str | None:
    """What the interval says: it excludes 0 on the good side, on the bad side, or not at all."""
    if better is None:
        return None
    if records < MINIMUM_RECORDS or low is None or high is None:
        return FEW
    if low <= 0 <= high:
        return UNCLEAR
    return BETTER if (low > 0) == (better == "higher") else WORSE


@dataclass(frozen=True)
class Verdict:
    """The first thing a reader sees of a run. `kind`: BETTER, WORSE, MIXED, UNCLEAR, FEW, or '' without a base."""

    kind: str
    text: str


def verdict(comparison: dict[str, Any] | None, scores: dict[str, Any], *, finished: bool = True) -> Verdict:
    """Plain English from a comparison (None when the base was not evaluated) and the tuned model's scores."""
    counts = f"{scores['records']:,} records, {scores['questions']:,} questions"
    caveats = _caveats(scores, finished)
    if comparison is None:
        parts = [f"{MEASURES[key].title} {_with_interval(key, scores)}" for key in (CHARACTER_F1, BITS_PER_CHARACTER)]
        text = f"Its base was not evaluated, so nothing can be said about improvement: {'; '.join(parts)} ({counts})."
        return Verdict("", " ".join([text, *caveats]))
    metrics = comparison["metrics"]
    readings = [metrics[key]["reading"] for key in (CHARACTER_F1, BITS_PER_CHARACTER)]
    kind, opening = _overall(*readings)
    f1, bits = (_change(key, metrics[key]) for key in (CHARACTER_F1, BITS_PER_CHARACTER))
    if kind in (BETTER, WORSE):
        against = WORSE if kind == BETTER else BETTER
        if others := [MEASURES[key].title for key, values in metrics.items() if values["reading"] == against]:
            caveats.insert(0, f"It is {against} by: {', '.join(others)}.")
    return Verdict(kind, " ".join([f"{opening}: {f1}; {bits}, lower is better ({counts}).", *caveats]))


def _overall(f1: str, bits: str) -> tuple[str, str]:
    if f1 == FEW:  # bits may be unknown of more records: then character F1 decides alone
        return FEW, f"Too few records for a verdict ({MINIMUM_RECORDS} are the least)"
    if {f1, bits} == {BETTER, WORSE}:
        return MIXED, "Better by one measure, worse by the other"
    if f1 == BETTER:
        return BETTER, "The tuned model is better"
    if f1 == WORSE:
        return WORSE, "The tuned model is worse"
    if bits == BETTER:
        return MIXED, "The tuned model expects the right answers more, but does not measurably give better ones"
    if bits == WORSE:
        return WORSE, "The tuned model expects the right answers less, and does not measurably give better ones"
    return UNCLEAR, "The tuned model is not distinguishable from its base"


def _change(key: str, values: dict[str, Any]) -> str:
    measure = MEASURES[key]
    span = ""
    if is_number(values["low"]):
        low, high = (measure.format_difference(values[end]) for end in ("low", "high"))
        span = f", 95% interval {low} to {high}"
    title = measure.title[0].lower() + measure.title[1:]
    change = measure.format_difference(values["difference"])
    return f"{title} {measure.format(values['base'])} → {measure.format(values['tuned'])} ({change}{span})"


def _with_interval(key: str, scores: dict[str, Any]) -> str:
    measure, values = MEASURES[key], scores["metrics"][key]
    span = f" ({measure.format(values['low'])} to {measure.format(values['high'])})" if is_number(values["low"]) else ""
    return measure.format(values["value"]) + span


def _caveats(scores: dict[str, Any], finished: bool) -> list[str]:
    metrics, caveats = scores["metrics"], []
    stopped, empty = metrics["stopped_share"]["value"], metrics["empty_share"]["value"]
    if not finished:
        caveats.append("Its training had not finished when it was evaluated.")
    if is_number(empty) and empty == 1:
        caveats.append("Every answer is empty.")
    elif is_number(empty) and empty > 0:
        caveats.append(f"{MEASURES['empty_share'].format(empty)} of its answers are empty.")
    if is_number(stopped) and stopped < 0.9:
        caveats.append(f"Only {MEASURES['stopped_share'].format(stopped)} of its answers ended by themselves.")
    if skipped := scores.get("references_without_bits"):
        caveats.append(
            f"Bits per character leave out {skipped:,} of {scores['references']:,} reference answers: too long for the "
            "model's context, or of no finite probability."
        )
    return caveats


@dataclass(frozen=True)
class Sample:
    """One question with both answers and their character F1 (base's are None where it was not evaluated)."""

    question: str
    context: str
    category: str
    references: list[str]
    base: str | None
    tuned: str
    base_f1: float | None
    tuned_f1: float
    base_stopped: bool | None
    tuned_stopped: bool


def choose_samples(base_rows: list[dict] | None, rows: list[dict], *, count: int, seed: int) -> dict[str, list[Sample]]:
    """Most improved, most worsened and a seeded random handful of the others, `count` each; empty groups left out."""
    base = {(row["id"], row["question_index"]): row for row in base_rows or []}
    ordered = sorted(rows, key=lambda row: (row["id"], row["question_index"]))
    samples = [_sample(base.get((row["id"], row["question_index"])), row) for row in ordered]
    changed = [s for s in samples if s.base_f1 is not None and s.base_f1 != s.tuned_f1]
    changed.sort(key=lambda s: s.tuned_f1 - s.base_f1)  # stable: ties stay in the order of ids
    worsened = [s for s in changed[:count] if s.tuned_f1 < s.base_f1]
    improved = [s for s in changed[::-1][:count] if s.tuned_f1 > s.base_f1]
    shown = {id(sample) for sample in worsened + improved}
    others = [sample for sample in samples if id(sample) not in shown]
    drawn = random.Random(seed).sample(others, min(count, len(others)))
    groups = {"Most improved": improved, "Most worsened": worsened, "Drawn at random": drawn}
    return {title: group for title, group in groups.items() if group}


def _sample(base: dict | None, row: dict) -> Sample:
    references = row["references"]
    return Sample(
        question=row["question"],
        context=row.get("context") or "",
        category=row["category"],
        references=references,
        base=base["prediction"] if base else None,
        tuned=row["prediction"],
        base_f1=character_f1(base["prediction"], references) if base else None,
        tuned_f1=character_f1(row["prediction"], references),
        base_stopped=base["stopped"] if base else None,
        tuned_stopped=row["stopped"],
    )
