"""Sample answers: most improved, most worsened, worst, and a few of the others at random (seeded)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from llm_qa.evaluation.metrics.measures import character_f1
from llm_qa.evaluation.statistics.grouping import CLOSE, closeness
from llm_qa.language import tr

DRAWN = 5  # number of random samples


@dataclass(frozen=True)
class Sample:
    """One question with both answers and their character F1 (base's are None where it was not evaluated)."""

    identity: str  # of the record
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
    close: bool  # to a training text


def choose_samples(base_rows: list[dict] | None, rows: list[dict], *, count: int, seed: int) -> dict[str, list[Sample]]:
    """Most improved, most worsened and worst, `count` each, then DRAWN of the others; no sample twice.

    Empty groups are left out. By character F1; ties stay in the order of ids.
    """
    base = {(row["id"], row["question_index"]): row for row in base_rows or []}
    ordered = sorted(rows, key=lambda row: (row["id"], row["question_index"]))
    samples = [_sample(base.get((row["id"], row["question_index"])), row) for row in ordered]
    gains = [(s.tuned_f1 - s.base_f1, s) for s in samples if s.base_f1 is not None]
    changed = sorted(((gain, s) for gain, s in gains if gain), key=lambda pair: pair[0])
    worsened = [s for gain, s in changed[:count] if gain < 0]
    improved = [s for gain, s in changed[::-1][:count] if gain > 0]
    others = _without(samples, improved + worsened)
    worst = sorted(others, key=lambda s: s.tuned_f1)[:count]
    others = _without(others, worst)
    drawn = random.Random(seed).sample(others, min(count, DRAWN, len(others)))
    groups = {
        tr("Most improved"): improved,
        tr("Most worsened"): worsened,
        tr("Worst"): worst,
        tr("Drawn at random"): drawn,
    }
    return {title: group for title, group in groups.items() if group}


def spread_samples(base_rows: list[dict] | None, rows: list[dict]) -> dict[str, Sample]:
    """Three answers: of the highest, the median and the lowest character F1; fewer of few rows.

    The first need not be right: character F1 compares letters.
    """
    base = {(row["id"], row["question_index"]): row for row in base_rows or []}
    samples = [_sample(base.get((row["id"], row["question_index"])), row) for row in rows]
    ordered = sorted(samples, key=lambda sample: (-sample.tuned_f1, sample.identity, sample.question))
    places = {
        tr("Closest to a right answer"): 0,
        tr("In the middle"): len(ordered) // 2,
        tr("Furthest from a right answer"): len(ordered) - 1,
    }
    chosen: dict[str, Sample] = {}
    for title, place in places.items():
        if ordered[place] not in chosen.values():
            chosen[title] = ordered[place]
    return chosen


def _without(samples: list[Sample], shown: list[Sample]) -> list[Sample]:
    known = {id(sample) for sample in shown}
    return [sample for sample in samples if id(sample) not in known]


def _sample(base: dict | None, row: dict) -> Sample:
    references = row["references"]
    return Sample(
        identity=row["id"],
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
        close=closeness(row) == CLOSE,
    )
