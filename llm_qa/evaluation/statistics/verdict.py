"""Describes the result of a comparison in words, shown first for each run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_qa.evaluation.metrics.catalogue import BITS_PER_CHARACTER, CHARACTER_F1, MEASURES, is_number
from llm_qa.evaluation.statistics.comparison import BETTER, FEW, MIXED, UNCLEAR, WORSE
from llm_qa.language import tr

# A model that repeats a few answers can have a good character F1: below this share of different answers, warn.
CANNED_SHARE, CANNED_FROM = 0.25, 20  # share of the questions, and the fewest questions for it


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run. `kind`: BETTER, WORSE, MIXED, UNCLEAR, FEW, or '' without a base."""

    kind: str
    text: str


def verdict(
    comparison: dict[str, Any] | None, scores: dict[str, Any], *, finished: bool = True, longest: int | None = None
) -> Verdict:
    """Plain English from a comparison (None when the base was not evaluated) and the tuned model's scores.

    `longest` is the token limit that the answers were cut at, where it is known.
    """
    counts = count_words(scores)
    caveats = _caveats(scores, finished, longest)
    if comparison is None:
        parts = [f"{MEASURES[key].title} {_with_interval(key, scores)}" for key in (CHARACTER_F1, BITS_PER_CHARACTER)]
        text = tr(
            "Its base was not evaluated, so nothing can be said about improvement: {scores} ({counts}).",
            scores="; ".join(parts),
            counts=counts,
        )
        return Verdict("", " ".join([text, *caveats]))
    metrics = comparison["metrics"]
    f1_outcome, bits_outcome = (metrics[key]["outcome"] for key in (CHARACTER_F1, BITS_PER_CHARACTER))
    kind, opening = _overall(f1_outcome, bits_outcome, comparison["groups_needed"])
    f1, bits = (_change(key, metrics[key]) for key in (CHARACTER_F1, BITS_PER_CHARACTER))
    if kind in (BETTER, WORSE):
        against = WORSE if kind == BETTER else BETTER
        if others := [MEASURES[key].title for key, values in metrics.items() if values["outcome"] == against]:
            measures = ", ".join(others)
            caveats.insert(
                0,
                tr("It is worse by: {measures}.", measures=measures)
                if against == WORSE
                else tr("It is better by: {measures}.", measures=measures),
            )
    text = tr("{opening}: {f1}; {bits}, lower is better ({counts}).", opening=opening, f1=f1, bits=bits, counts=counts)
    return Verdict(kind, " ".join([text, *caveats]))


def count_words(scores: dict[str, Any]) -> str:
    """'1,174 records in 756 groups, 1,174 questions'; the groups only where records share texts."""
    groups, records, questions = (scores[key] for key in ("record_groups", "records", "questions"))
    if groups < records:
        return tr(
            "{records:,} records in {groups:,} groups, {questions:,} questions",
            records=records,
            groups=groups,
            questions=questions,
        )
    return tr("{records:,} records, {questions:,} questions", records=records, questions=questions)


def few_words(needed: int) -> str:
    """'too few records (9 needed here)'; records that share a text count once."""
    return tr("{too_few} ({needed:,} needed here)", too_few=tr(FEW), needed=needed)


def _overall(f1: str, bits: str, needed: int) -> tuple[str, str]:
    if f1 == FEW:  # where only bits have too few, character F1 decides alone
        return FEW, tr("{too_few} for a verdict", too_few=few_words(needed).capitalize())
    if {f1, bits} == {BETTER, WORSE}:
        return MIXED, tr("Better by one measure, worse by the other")
    if f1 == BETTER:
        return BETTER, tr("The tuned model is better")
    if f1 == WORSE:
        return WORSE, tr("The tuned model is worse")
    if bits == BETTER:
        return MIXED, tr(
            "The tuned model gives right answers a higher probability, but does not answer measurably better"
        )
    if bits == WORSE:
        return WORSE, tr(
            "The tuned model gives right answers a lower probability, and does not answer measurably better"
        )
    return UNCLEAR, tr("The tuned model is not distinguishable from its base")


def _change(key: str, values: dict[str, Any]) -> str:
    measure = MEASURES[key]
    span = ""
    if is_number(values["low"]):
        low, high = (measure.format_difference(values[end]) for end in ("low", "high"))
        span = tr(", 95% interval {low} to {high}", low=low, high=high)
    title = measure.title[0].lower() + measure.title[1:]
    change = measure.format_difference(values["difference"])
    return f"{title} {measure.format(values['base'])} → {measure.format(values['tuned'])} ({change}{span})"


def _with_interval(key: str, scores: dict[str, Any]) -> str:
    measure, values = MEASURES[key], scores["metrics"][key]
    span = f" ({measure.format(values['low'])} to {measure.format(values['high'])})" if is_number(values["low"]) else ""
    return measure.format(values["value"]) + span


def _caveats(scores: dict[str, Any], finished: bool, longest: int | None) -> list[str]:
    metrics, caveats = scores["metrics"], []
    empty = metrics["empty_share"]["value"]
    if not finished:
        caveats.append(tr("Its training had not finished when it was evaluated."))
    if is_number(empty) and empty == 1:
        caveats.append(tr("Every answer is empty."))
    elif is_number(empty) and empty > 0:
        caveats.append(tr("{share} of its answers are empty.", share=MEASURES["empty_share"].format(empty)))
    if cut := scores["answers_cut"]:
        share = MEASURES["stopped_share"].format(cut / scores["questions"])
        values = {"cut": cut, "answers": scores["questions"], "share": share}
        caveats.append(
            tr(
                "{cut:,} of its {answers:,} answers ({share}) were cut after {longest:,} tokens (--max-new-tokens).",
                longest=longest,
                **values,
            )
            if longest
            else tr("{cut:,} of its {answers:,} answers ({share}) were cut.", **values)
        )
    different = scores.get("different_answers")
    if different and scores["questions"] >= CANNED_FROM and different < CANNED_SHARE * scores["questions"]:
        caveats.append(
            tr(
                "Its {answers:,} answers are only {different:,} different texts.",
                answers=scores["questions"],
                different=different,
            )
        )
    if skipped := scores.get("references_without_bits"):
        caveats.append(
            tr(
                "Bits per character leave out {skipped:,} of {references:,} reference answers: too long for the "
                "model's context, or without a finite probability.",
                skipped=skipped,
                references=scores["references"],
            )
        )
    return caveats
