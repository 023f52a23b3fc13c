"""Texts for the two templates: table rows, with unknown figures as "–". Computes no scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llm_qa.console import format_seconds
from llm_qa.evaluation.metrics.catalogue import BITS_PER_CHARACTER, CHARACTER_F1, MEASURES, UNKNOWN, is_number
from llm_qa.evaluation.report.original import ORIGINAL_DEVICE, ORIGINAL_RUNS
from llm_qa.evaluation.statistics.comparison import FEW
from llm_qa.evaluation.statistics.verdict import few_words
from llm_qa.language import later, tr

if TYPE_CHECKING:
    from llm_qa.evaluation.report.loading import Report, RunReport


def span(values: dict[str, Any] | None, format_one: Callable[[float], str], groups: int) -> str:
    """'0.120 to 0.140', with the number of groups where it is less than `groups`, that of the whole table."""
    if not values:
        return ""
    ends = [format_one(values[end]) for end in ("low", "high") if is_number(values.get(end))]
    counted = values.get("groups", groups)
    fewer = [tr("{counted:,} of {groups:,} groups", counted=counted, groups=groups)] if 0 < counted < groups else []
    return ", ".join([tr("{low} to {high}", low=ends[0], high=ends[1]), *fewer] if len(ends) == 2 else fewer)


def reading_text(values: dict[str, Any], comparison: dict[str, Any] | None) -> str:
    """What the test says, and how many groups it would need where they are too few; '' for what is not tested."""
    if comparison is None:
        return ""
    outcome = values.get("outcome") or ""
    return few_words(comparison["groups_needed"]) if outcome == FEW else tr(outcome)


def format_p(p: float | None) -> str:
    """'0.012', '< 0.001', or '–' without a test."""
    return UNKNOWN if not is_number(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def score_rows(base: dict | None, tuned: dict, comparison: dict | None, keys: Sequence[str] = tuple(MEASURES)) -> list:
    """Texts of a score table, one dict per measure; `base`, `tuned` and `comparison` have 'metrics'."""
    rows, groups = [], tuned["record_groups"]
    for key in keys:
        measure, after = MEASURES[key], tuned["metrics"][key]
        before = base["metrics"][key] if base else None
        change = comparison["metrics"][key] if comparison else {}
        rows.append(
            {
                "measure": measure,
                "base": measure.format(before["value"]) if before else UNKNOWN,
                "base_span": span(before, measure.format, groups),
                "tuned": measure.format(after["value"]),
                "tuned_span": span(after, measure.format, groups),
                "difference": measure.format_difference(change.get("difference")),
                "difference_span": span(change, measure.format_difference, groups),
                "p": format_p(change.get("p_holm")),
                "outcome": reading_text(change, comparison),
                "reading": tr(change.get("outcome") or ""),
                "groups": after["groups"],
            }
        )
    return rows


def group_rows(run: RunReport, grouping: str) -> list[dict[str, Any]]:
    """One row per group: its name, counts, and the score texts of character F1 and bits per character."""
    rows = []
    for name, part in run.tuned.scores["groups"].get(grouping, {}).items():
        before = (run.base.scores["groups"].get(grouping, {}) if run.base else {}).get(name)
        change = (run.comparison["groups"].get(grouping, {}) if run.comparison else {}).get(name)
        f1, bits = score_rows(before, part, change, (CHARACTER_F1, BITS_PER_CHARACTER))
        rows.append({"name": name or tr("(none)"), "groups": part["record_groups"], "questions": part["questions"]})
        rows[-1] |= {"f1": f1, "bits": bits}
    return rows


COST_HEADER = (
    later("Run"),
    later("Model"),
    later("Trained"),
    later("Device"),
    later("Epoch time"),
    later("Total time"),
    later("GPU hours"),
    later("Tokens/s"),
    later("Peak memory"),
    later("Answers/s"),
)


def cost_rows(report: Report) -> list[list[str]]:
    """Our runs by COST_HEADER; unknown is '–'."""
    rows = []
    for run in report.runs:
        training, recipe = run.folder.training, run.folder.recipe
        device = training.get("device") or run.folder.environment.get("device")
        rows.append(
            [
                run.name,
                str(run.tuned.model or recipe.get("model") or UNKNOWN),
                _trained(recipe, training),
                str(device or UNKNOWN),
                _seconds(training.get("seconds_per_epoch")),
                _seconds(training.get("wall_seconds")),
                _number(run.folder.hours if run.folder.environment.get("gpus") else None, "{:,.2f}")
                + _energy(training.get("energy_joules")),
                _number(training.get("tokens_per_second"), "{:,.0f}"),
                _memory(training.get("peak_memory_bytes")),
                _number(run.tuned.answers_per_second, "{:,.1f}"),
            ]
        )
    return rows


def original_rows() -> list[list[str]]:
    """The original notebooks' rows by COST_HEADER."""
    return [
        [
            tr("original notebooks"),
            row.model,
            tr(row.method),
            ORIGINAL_DEVICE,
            row.time_per_epoch,
            UNKNOWN,
            UNKNOWN,
            UNKNOWN,
            row.memory,
            UNKNOWN,
        ]
        for row in ORIGINAL_RUNS
    ]


def _trained(recipe: dict, training: dict) -> str:
    if "method" not in recipe:
        return UNKNOWN
    what = (
        tr("all weights")
        if recipe["method"] == "full"
        else "LoRA" + (f" r {recipe['lora_r']}" if "lora_r" in recipe else "")
    )
    if recipe.get("base_precision") and recipe["method"] != "full":
        what = tr("{what} on {base}", what=what, base=recipe["base_precision"])
    trainable, total = training.get("trainable_parameters"), training.get("total_parameters")
    if recipe["method"] != "full" and is_number(trainable) and is_number(total) and total:
        what += tr(" ({share:.2g}% of parameters)", share=100 * trainable / total)
    return what


def _number(value: Any, pattern: str) -> str:
    return pattern.format(value) if is_number(value) else UNKNOWN


def _energy(joules: Any) -> str:
    return f", {joules / 3.6e6:,.2f} kWh" if is_number(joules) else ""


def _seconds(value: Any) -> str:
    return format_seconds(value) if is_number(value) else UNKNOWN


def _memory(peaks: Any) -> str:
    known = [peak for peak in (peaks if isinstance(peaks, list) else [peaks]) if is_number(peak) and peak > 0]
    if not known:
        return UNKNOWN
    text = f"{max(known) / 1e9:.1f} GB" if max(known) >= 1e9 else f"{max(known) / 1e6:.0f} MB"
    return text + (f" (highest of {len(known)} ranks)" if len(known) > 1 else "")


def settings(run: RunReport, report: Report) -> dict[str, dict[str, str]]:
    """Section -> setting -> text: all that is needed to get these numbers again."""
    scores = run.tuned.scores
    data = {"folder": report.data, "sha256": report.data_sha256, "split": report.split}
    trained_on = run.folder.environment.get("data_sha256")
    statistics = {key: scores[key] for key in ("seed", "resamples", "confidence", "resampled") if key in scores}
    training = {key: value for key, value in run.folder.training.items() if key != "finished"}
    sections = {
        "Recipe": run.folder.recipe,
        "Generation": run.tuned.generation,
        "Data": data | ({"sha256 trained on": trained_on} if trained_on else {}),
        "Intervals": statistics | {"seed of the comparison and the samples": report.seed},
        "Training": training,
        "Environment": {key: value for key, value in run.folder.environment.items() if key != "data_sha256"},
    }
    return {title: dict(_flat(values)) for title, values in sections.items() if values}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            empty = value is None or value == []
            yield (
                f"{prefix}{key}",
                UNKNOWN if empty else ", ".join(map(str, value)) if isinstance(value, list) else str(value),
            )
