"""Texts at the top of the report: ranking of all models, closeness to training texts, KoBEST. Computes no scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_qa import files
from llm_qa.console import format_seconds
from llm_qa.data.readers.kobest import TASKS
from llm_qa.evaluation.kobest import KOBEST_MEASURES, MACRO_F1, published_scores
from llm_qa.evaluation.metrics.catalogue import (
    BITS_PER_CHARACTER,
    CHARACTER_F1,
    EMBEDDING_COSINE,
    MEASURES,
    UNKNOWN,
    is_number,
)
from llm_qa.evaluation.report.views import format_p, reading_text, span
from llm_qa.evaluation.statistics.grouping import CLOSENESS, NEW
from llm_qa.evaluation.statistics.ranking import PAIR_MEASURES
from llm_qa.language import tr

if TYPE_CHECKING:
    from llm_qa.evaluation.metrics.catalogue import Measure
    from llm_qa.evaluation.report.loading import Report
    from llm_qa.evaluation.statistics.ranking import Entry

RANKED_BY = (CHARACTER_F1, "chrf", "rougeL", BITS_PER_CHARACTER, EMBEDDING_COSINE, "stopped_share")


def measured(report: Report) -> tuple[str, ...]:
    """Keys of the measures for which some model has a value, in the report's order."""
    return tuple(key for key in MEASURES if any(is_number(e.scores["metrics"][key]["value"]) for e in report.entries))


def headline(report: Report) -> str:
    """The report's first lines: questions trained on, the best tuned model, what it clearly beats, copied answers."""
    return " ".join([*trained_on(report), _best(report), *_with_references(report)])


def trained_on(report: Report) -> list[str]:
    """['5 of 9 test questions are in the training data.'], run by run where there are several; [] where none does."""
    counts = {run.name: (run.tuned.contamination or {}).get("trained_on_questions") for run in report.runs}
    found = {name: count for name, count in counts.items() if count}
    if not found:
        return []
    asked = {"asked": report.runs[0].tuned.scores["questions"], "split": report.split}
    if len(report.runs) == 1:
        count = next(iter(found.values()))
        return [tr("{count:,} of {asked:,} {split} questions are in the training data.", count=count, **asked)]
    whose = _listed([f"{name} ({count:,})" for name, count in found.items()])
    return [tr("Of {asked:,} {split} questions some are in the training data of {whose}.", whose=whose, **asked)]


def _best(report: Report) -> str:
    by_rank = {entry.rank: entry for entry in report.entries}
    best = next(entry for entry in report.entries if entry.label == files.TUNED)
    others = [entry for entry in report.entries if entry.label == files.TUNED and entry is not best]

    def score(entry: Entry) -> str:
        return MEASURES[CHARACTER_F1].format(entry.scores["metrics"][CHARACTER_F1]["value"])

    def name(entry: Entry) -> str:
        return tr("its base") if entry.label == files.BASE and best.runs[0] in entry.runs else entry.name

    beaten = [by_rank[rank] for rank in best.beats]
    if others:
        text = tr("{name} is the best tuned model ({score} character F1)", name=best.name, score=score(best))
    else:
        text = tr("{name} reaches {score} character F1", name=best.name, score=score(best))
    text += (
        tr(", clearly better than {others}", others=_listed([name(e) for e in beaten]))
        if beaten
        else tr("; the test shows it to be better than none of the others")
    )
    if undecided := [entry.name for entry in others if entry not in beaten and best.rank not in entry.beats]:
        text += tr("; not distinguishable from {others}", others=_listed(undecided))
    copies = [entry for entry in report.entries if entry.label == files.NEAREST]
    if stronger := [entry for entry in copies if best.rank in entry.beats]:
        copied = tr("Copying the nearest training answer is clearly better still ({score}).", score=score(stronger[0]))
        return f"{text}. {copied}"
    if copies and not any(entry in beaten for entry in copies):
        copied = tr(
            "Copying the nearest training answer ({score}) is neither clearly better nor worse.", score=score(copies[0])
        )
        return f"{text}. {copied}"
    return f"{text}."


def _with_references(report: Report) -> list[str]:
    """What "with references" means for the runs that were asked so, in a sentence; [] without any."""
    asked = [evaluation for run in report.runs for evaluation in run.folder.with_references.values()]
    counts = sorted({str(evaluation.generation.get("retrieval")) for evaluation in asked})
    if not counts:
        return []
    return [
        tr(
            '"With references" is the same model asked with up to {counts} of the nearest training records before each '
            "question, which it was not trained with.",
            counts=", ".join(counts),
        )
    ]


def _listed(names: list[str], most: int = 4) -> str:
    shown = names if len(names) <= most else [*names[: most - 1], tr("{count} others", count=len(names) - most + 1)]
    if len(shown) == 1:
        return shown[0]
    return tr("{first} and {last}", first=", ".join(shown[:-1]), last=shown[-1])


def ranking_header(report: Report) -> list[str]:
    """Titles of the columns of `ranking_rows`."""
    keys = [key for key in RANKED_BY if key in measured(report)]
    titles = [f"{MEASURES[key].title}\u00a0{MEASURES[key].arrow}" for key in keys]
    return ["#", tr("Model"), titles[0], tr("Clearly better than"), *titles[1:], tr("Training time")]


def ranking_rows(report: Report) -> list[dict[str, Any]]:
    """One row per model: rank, name, kind, its cells of (text, interval), hours, and the ranks that it beats."""
    keys = [key for key in RANKED_BY if key in measured(report)]
    rows = []
    for entry in report.entries:
        cells = []
        for key in keys:
            measure, values = MEASURES[key], entry.scores["metrics"][key]
            cells.append((measure.format(values["value"]), span(values, measure.format, entry.scores["record_groups"])))
        hours = format_seconds(entry.hours * 3600) if entry.hours else UNKNOWN
        rows.append(
            {
                "rank": entry.rank,
                "name": entry.name,
                "label": entry.label,
                "cells": cells,
                "hours": hours,
                "beats": ", ".join(f"#{rank}" for rank in entry.beats) or UNKNOWN,
            }
        )
    return rows


def pairwise_rows(report: Report) -> list[dict[str, Any]]:
    """One row per pair of tuned models or copied answers: their names, and the differences of F1 and bits as text."""
    names = {entry.rank: f"#{entry.rank} {entry.name}" for entry in report.entries}
    rows = []
    for pairwise in report.pairwise_comparisons:
        groups = f"{pairwise.comparison['record_groups']:,}"
        row: dict[str, Any] = {
            "first": names[pairwise.first],
            "second": names[pairwise.second],
            "groups": groups,
            "cells": [],
        }
        for key in PAIR_MEASURES:
            measure, values = MEASURES[key], pairwise.comparison["metrics"][key]
            interval = span(values, measure.format_difference, pairwise.comparison["record_groups"])
            p = format_p(values["p_holm"])
            row["cells"].append((measure.format_difference(values["difference"]), interval, p))
        row["outcome"] = reading_text(pairwise.comparison["metrics"][CHARACTER_F1], pairwise.comparison) or UNKNOWN
        rows.append(row)
    return rows


def closeness_rows(report: Report) -> list[dict[str, Any]]:
    """One row a run: how much of the test is close to its training texts; F1 and its gain with and without that.

    A run that was also asked with references has a row for that too, without a gain.
    """
    asked = []
    for run in report.runs:
        asked.append((run.name, run.tuned, run.comparison))
        if beside := run.folder.with_references.get(files.TUNED_WITH):
            asked.append((run.name + tr(" with references"), beside, None))
    rows = []
    for name, evaluation, comparison in asked:
        found, scores = evaluation.contamination, evaluation.scores
        row: dict[str, Any] = {"name": name, "checked": bool(found)}
        if found:
            f1 = MEASURES[CHARACTER_F1]
            new = scores["groups"].get(CLOSENESS, {}).get(NEW)
            row |= {
                "similarity": f"{found['similarity_from']:.0%}",
                "questions": f"{found['close_questions']:,} of {scores['questions']:,}",
                "answers": f"{found['close_answers']:,} of {scores['questions']:,}",
                "records": f"{found['close_records']:,} of {scores['records']:,}",
                "with": f1.format(scores["metrics"][CHARACTER_F1]["value"]),
                "without": f1.format(new["metrics"][CHARACTER_F1]["value"]) if new else UNKNOWN,
                "without_span": span(new["metrics"][CHARACTER_F1], f1.format, new["record_groups"]) if new else "",
                "without_groups": f"{new['record_groups']:,}" if new else "0",
                "gain": _gain(comparison),
                "gain_without": _gain(((comparison or {}).get("groups") or {}).get(CLOSENESS, {}).get(NEW)),
            }
        rows.append(row)
    return rows


def _gain(comparison: dict[str, Any] | None) -> tuple[str, str]:
    """Character F1's difference from the base and its interval."""
    if not comparison:
        return UNKNOWN, ""
    values, signed = comparison["metrics"][CHARACTER_F1], MEASURES[CHARACTER_F1].format_difference
    return signed(values["difference"]), span(values, signed, comparison["record_groups"])


def kobest_tables(report: Report) -> list[dict[str, Any]]:
    """A table for each run with KoBEST results: one row per task and measure, with the published score of the base."""
    tables = []
    for run in report.runs:
        if (compared := run.kobest) is None:
            continue
        found, rows = run.folder.kobest, []
        for task in (task for task in TASKS if task in found["tasks"]):
            for measure in KOBEST_MEASURES:
                if values := found["tasks"][task].get(measure.key):
                    tested = compared["metrics"][task] if measure is MACRO_F1 else {}
                    rows.append({"task": task, "measure": measure, **_choice_texts(measure, values, tested, compared)})
                    published = published_scores(found["model"], task, found["num_fewshot"])
                    rows[-1]["published"] = measure.format(published if measure is MACRO_F1 else None)
        tables.append({"name": run.name, "shots": found["num_fewshot"], "lm_eval": found["lm_eval"], "rows": rows})
    return tables


def _choice_texts(
    measure: Measure, values: dict[str, Any], tested: dict[str, Any], comparison: dict[str, Any]
) -> dict[str, str]:
    records = values["records"]
    texts = {
        "records": f"{records:,}",
        "difference": measure.format_difference(values["difference"]),
        "difference_span": span(values, measure.format_difference, records),
        "p": format_p(tested.get("p_holm")),
        "outcome": reading_text(tested, comparison) or UNKNOWN,
    }
    for label in (files.BASE, files.TUNED):
        ends = {end: values[f"{label}_{end}"] for end in ("low", "high")}
        texts |= {label: measure.format(values[label]), f"{label}_span": span(ends, measure.format, records)}
    return texts
