"""Predictions -> scores: every measure with its 95% bootstrap interval over groups of records, overall and by kind.

Every measure is a ratio of two sums over groups (a mean is the case where the denominator counts questions), so one
resampling serves all measures. Groups (`data/groups.py`) are resampled: their records share a question or an answer,
and a record's questions share their references, so they are drawn together (cluster bootstrap, Davison & Hinkley 1997,
3.8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from llm_qa.console import UserError, progress
from llm_qa.evaluation.metrics import measures, morphemes
from llm_qa.evaluation.metrics.catalogue import EMBEDDING_COSINE, MEASURES, definitions, is_number
from llm_qa.evaluation.statistics.grouping import group_rows, with_groups

CONFIDENCE = 0.95
RESAMPLES = 2000
REQUIRED = {
    "id": str,
    "question_index": int,
    "question": str,
    "category": str,
    "references": list,
    "prediction": str,
    "stopped": bool,
    "reference_bits": list,
    "reference_characters": list,
}


@dataclass(frozen=True)
class GroupSums:
    """Per group (sorted by name) and measure (in MEASURES' order): float64 arrays of shape (groups, measures)."""

    names: list[str]
    records: int  # in all groups together
    questions: np.ndarray  # (groups,) int64
    numerators: np.ndarray
    denominators: np.ndarray
    counted: np.ndarray  # int64, questions that have each measure


@lru_cache(maxsize=1 << 17)
def text_scores(prediction: str, references: tuple[str, ...]) -> dict[str, float]:
    """The measures of one answer's text; cached, as comparisons and groups need them repeatedly."""
    return {
        "exact_match": measures.exact_match(prediction, references),
        "character_f1": measures.character_f1(prediction, references),
        "chrf": measures.chrf(prediction, references),
        "rouge1": morphemes.rouge_n(prediction, references, 1),
        "rouge2": morphemes.rouge_n(prediction, references, 2),
        "rougeL": morphemes.rouge_l(prediction, references),
        "repetition": morphemes.repetition(prediction),
        "empty_share": measures.is_empty(prediction),
    }


def row_terms(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """One question's (numerator, denominator) of each measure; (0, 0) where it could not be measured."""
    prediction, references = row["prediction"], row["references"]
    cosine = row.get(EMBEDDING_COSINE)
    return {
        **{key: (value, 1) for key, value in text_scores(prediction, tuple(references)).items()},
        "bits_per_character": measures.known_bits(row["reference_bits"], row["reference_characters"]),
        EMBEDDING_COSINE: (cosine, 1) if is_number(cosine) else (0, 0),
        "stopped_share": (float(row["stopped"]), 1),
        "length_ratio": measures.lengths(prediction, references),
    }


def check_rows(rows: list[dict[str, Any]], source: str = "predictions.jsonl") -> None:
    """UserError for no rows, a missing key, a wrong type, a repeated question, or lists of different lengths."""
    again = "evaluate the run again with scripts/evaluate.py"
    if not rows:
        raise UserError(f"{source} holds no predictions: {again} on a split that has records.")
    seen: set[tuple[str, int]] = set()
    categories: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{source}, prediction {number},"
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object: {again}.")
        wrong = [key for key, kind in REQUIRED.items() if not isinstance(row.get(key), kind)]
        if wrong:
            raise UserError(f"{where} has no valid {', '.join(wrong)}: {again}.")
        references, key = row["references"], (row["id"], row["question_index"])
        if not references or not all(isinstance(reference, str) and reference for reference in references):
            raise UserError(f"{where} ({row['id']}) has no reference answer, or an empty one: {again}.")
        if not len(references) == len(row["reference_bits"]) == len(row["reference_characters"]):
            raise UserError(f"{where} ({row['id']}) does not have one number of bits for each reference: {again}.")
        if key in seen:
            raise UserError(f"{where} repeats question {key[1]} of record {key[0]}: {again}.")
        if categories.setdefault(row["id"], row["category"]) != row["category"]:
            raise UserError(f"{where} gives record {row['id']} a second category, {row['category']!r}: {again}.")
        if not all(bits is None or isinstance(bits, int | float) for bits in row["reference_bits"]):
            raise UserError(f"{where} ({row['id']}) has bits that are not numbers: {again}.")
        seen.add(key)


def group_sums(rows: list[dict[str, Any]], *, what: str = "scoring answers") -> GroupSums:
    """Sum the rows' terms by their `group`. They are sorted first, so that the order of rows has no effect."""
    ordered = sorted(rows, key=lambda row: (row["group"], row["id"], row["question_index"]))
    names = sorted({row["group"] for row in ordered})
    place = {name: i for i, name in enumerate(names)}
    questions = np.zeros(len(names), dtype=np.int64)
    counted = np.zeros((len(names), len(MEASURES)), dtype=np.int64)
    terms = np.zeros((2, len(names), len(MEASURES)))
    for row in progress(ordered, what=what, unit="answers") if len(ordered) > 500 else ordered:
        i, values = place[row["group"]], row_terms(row)
        questions[i] += 1
        added = np.array([values[key] for key in MEASURES], dtype=np.float64).T
        terms[:, i] += added
        counted[i] += added[1] > 0
    return GroupSums(names, len({row["id"] for row in ordered}), questions, terms[0], terms[1], counted)


def resampled_ratios(
    numerators: np.ndarray, denominators: np.ndarray, *, seed: int, resamples: int
) -> Iterator[np.ndarray]:
    """Yield blocks (draws, columns) of ratios of sums, each draw over groups (rows) taken with replacement.

    NaN where a draw's denominator is 0. Sums do not use BLAS, so that they do not depend on the number of threads.
    """
    groups, columns = numerators.shape
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // (groups * columns))  # about 64 MB at a time
    for begin in range(0, resamples, block):
        drawn = generator.integers(0, groups, size=(min(block, resamples - begin), groups))
        yield ratios(numerators[drawn].sum(axis=1), denominators[drawn].sum(axis=1))


def ratios(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Elementwise quotient, NaN where the denominator is 0."""
    return np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators > 0)


def interval(draws: np.ndarray) -> tuple[float | None, float | None]:
    """95% percentile interval of one column of draws; (None, None) without a usable draw."""
    draws = draws[np.isfinite(draws)]
    if not draws.size:
        return None, None
    low, high = np.percentile(draws, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def _summary(sums: GroupSums, *, seed: int, resamples: int) -> dict[str, Any]:
    values = ratios(sums.numerators.sum(axis=0), sums.denominators.sum(axis=0))
    draws = np.concatenate(
        list(resampled_ratios(sums.numerators, sums.denominators, seed=seed, resamples=resamples)), axis=0
    )
    metrics = {}
    for column, key in enumerate(MEASURES):
        counted = sums.counted[:, column]
        groups = int((counted > 0).sum())
        # One group has no variance between groups, so there is no interval rather than one of width 0.
        low, high = interval(draws[:, column]) if groups > 1 else (None, None)
        metrics[key] = {
            "value": float(values[column]) if np.isfinite(values[column]) else None,
            "low": low,
            "high": high,
            "groups": groups,
            "questions": int(counted.sum()),
        }
    return {**counts(sums), "metrics": metrics}


def counts(sums: GroupSums) -> dict[str, int]:
    """The numbers of scored groups, records and questions; `record_groups` is the n of every interval and test."""
    return {
        "record_groups": len(sums.names),
        "records": sums.records,
        "questions": int(sums.questions.sum()),
    }


def score_predictions(rows: list[dict[str, Any]], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Score one predictions.jsonl: JSON-serialisable, the same to the last digit for the same rows in any order.

    Returns record_groups, records, questions, metrics {key: {value, low, high, groups, questions}}, groups {grouping:
    {name: the same}}, different_answers (texts), answers_cut (those that ran out of tokens), references_without_bits
    (left out of bits per character). Intervals are 95% percentile bootstrap over groups of records; `value` is
    None where nothing could be counted. Rows without a `group` get theirs by `with_groups`.
    Raises UserError by `check_rows`.
    """
    check_rows(rows)
    rows = with_groups(rows)
    sums = group_sums(rows)
    bits = [value for row in rows for value in row["reference_bits"]]
    return {
        **_summary(sums, seed=seed, resamples=resamples),
        "different_answers": len({row["prediction"] for row in rows}),
        "answers_cut": sum(not row["stopped"] for row in rows),
        "references": len(bits),
        "references_without_bits": sum(value is None or not math.isfinite(value) for value in bits),
        "groups": {
            grouping: {
                name: _summary(group_sums([rows[i] for i in places]), seed=seed, resamples=resamples)
                for name, places in groups.items()
            }
            for grouping, groups in group_rows(rows).items()
        },
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "seed": seed,
        "resampled": "groups of records that share a question or an answer",
        "definitions": definitions(),
    }
