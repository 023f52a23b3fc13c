"""The report's plots: scores, quality against cost, groups, distribution of scores, losses."""

from __future__ import annotations

from typing import Any

from llm_qa import files
from llm_qa.evaluation.metrics.catalogue import CHARACTER_F1, HEADLINE, MEASURES, is_number
from llm_qa.evaluation.report.plotting import (
    LIGHT,
    RUN_COLOURS,
    Dash,
    Plot,
    base_tuned_legend,
    draw_dots,
    finished,
    from_zero,
    largest_value,
    legend_above,
    line,
    new_figure,
    shorten,
    styled,
)
from llm_qa.evaluation.statistics.ranking import Entry
from llm_qa.language import tr
from llm_qa.widths import display_width

DASHES: tuple[Dash, ...] = ("-", "--", ":")
DASH_OF_LABEL: dict[str, Dash] = {files.TUNED: "-", files.BASE: "--", files.NEAREST: ":"}
DASH_OF_LABEL |= {files.TUNED_WITH: "-.", files.BASE_WITH: "-."}


@styled
def scores_plot(names: list[str], runs: list[tuple[dict | None, dict]]) -> Plot:
    """Base and tuned with intervals, a panel for each headline measure, a row for each run."""
    labels = [shorten(name, 20) for name in names]
    figure, axes = new_figure(len(HEADLINE), height=1.0 + 0.42 * len(runs), label_width=max(map(display_width, labels)))
    for panel, key in zip(axes, HEADLINE, strict=True):
        measure = MEASURES[key]
        panel.set_title(f"{measure.title} {measure.arrow}")
        draw_dots(panel, [(base and base["metrics"][key], tuned["metrics"][key]) for base, tuned in runs])
        if measure.better != "lower":  # 0 is no meaningful reference for bits per character
            from_zero(panel, largest_value([part for pair in runs for part in pair if part], key))
    axes[0].set_yticks(range(len(labels)), labels)
    base_tuned_legend(figure, any(base for base, _ in runs))
    return finished(figure, "scores", tr("Scores of base and tuned model with 95% intervals"))


@styled
def groups_plot(stem: str, title: str, base: dict[str, Any] | None, parts: dict[str, Any], *, largest: float) -> Plot:
    """Character F1 of base and tuned with intervals, a row for each group; the axis goes from 0 to `largest`."""
    labels = [f"{shorten(part)} ({parts[part]['record_groups']:,})" for part in parts]
    height = 1.0 + 0.36 * len(parts)
    figure, (panel,) = new_figure(1, height=height, label_width=max(map(display_width, labels)))
    panel.set_title(tr("{measure} ↑ (groups of records in brackets)", measure=MEASURES[CHARACTER_F1].title))
    before = base or {}
    draw_dots(
        panel,
        [
            (before[p]["metrics"][CHARACTER_F1] if p in before else None, v["metrics"][CHARACTER_F1])
            for p, v in parts.items()
        ],
    )
    from_zero(panel, largest)
    panel.set_yticks(range(len(labels)), labels)
    base_tuned_legend(figure, base is not None)
    return finished(figure, stem, title)


def colour_of(entry: Entry) -> str:
    """The colour of an entry's run; copied training answers are grey."""
    return LIGHT["muted" if entry.label == files.NEAREST else RUN_COLOURS[entry.runs[0] % len(RUN_COLOURS)]]


@styled
def cost_plot(entries: list[Entry]) -> Plot | None:
    """Character F1 against hours of training, by rank number; None where no run's hours are known.

    Untrained models are on the left edge, joined by lines with the models trained from them. Hours are wall-clock times
    the number of processes, on a logarithmic axis.
    """
    hours = [entry.hours for entry in entries if entry.hours]
    if not hours:
        return None
    figure, (panel,) = new_figure(1, height=3.3, label_width=6, legend_rows=0, x_label=True)
    edge, highest = min(hours) / 4, max(hours)
    panel.set_xscale("log")
    right = highest * (highest / edge) ** 0.45
    panel.set_xlim(edge / 1.5, right)
    panel.set_ylim(0, 1.1 * largest_value([entry.scores for entry in entries], CHARACTER_F1))
    points = [(entry.hours or edge, entry.scores["metrics"][CHARACTER_F1]) for entry in entries]
    labels = [f"{entry.rank} {shorten(entry.name, 30)}" for entry in entries]
    rises = _label_rises(panel, points, labels)
    for entry, (x, values), label, rise in zip(entries, points, labels, rises, strict=True):
        colour = colour_of(entry)
        if is_number(values["low"]) and is_number(values["high"]):
            panel.plot([x, x], [values["low"], values["high"]], color=colour, linewidth=1.4)
        face = colour if entry.label == files.TUNED else LIGHT["page"]
        panel.plot(x, values["value"], "o", color=colour, markerfacecolor=face)
        panel.annotate(label, (x, values["value"]), (8, rise), textcoords="offset points", va="center", fontsize=8)
    ticks = [tick for tick in _TICKS if edge * 1.5 < tick < right * (edge / right) ** 0.05]  # so that its label fits
    panel.set_xticks([edge, *ticks], [tr("not trained"), *map(_hours, ticks)])
    panel.minorticks_off()
    panel.set_xlabel(tr("training time × processes"))
    panel.set_title(tr("Character F1 ↑ against training time, with 95% intervals"))
    return finished(figure, "cost", tr("Character F1 against training time"))


_TICKS = [t / 3600 for t in (1, 3, 10, 30, 60, 180, 600, 1800)] + [1, 3, 10, 30, 100, 300, 1000, 3000]
_LINE_POINTS, _LETTER_POINTS = 11, 5  # height of a label, and width of a character


def _hours(hours: float) -> str:
    seconds = round(hours * 3600)
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600:,} h"


def _label_rises(panel, points: list[tuple[float, dict[str, Any]]], labels: list[str]) -> list[float]:
    """The distance in points of each label above its dot, so that it covers neither another label nor an interval."""

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = panel.transData.transform((x, y)) * 72 / panel.figure.dpi
        return across, up

    taken = []  # left, right, bottom, top
    for x, values in points:
        ends = [values[key] for key in ("low", "high", "value") if is_number(values[key])]
        (across, bottom), (_, top) = place(x, min(ends)), place(x, max(ends))
        taken.append((across - _LETTER_POINTS, across + _LETTER_POINTS, bottom, top))
    rises: list[float] = []
    for (x, values), label in zip(points, labels, strict=True):
        across, height = place(x, values["value"])
        left, right = across + 1.5 * _LETTER_POINTS, across + (1.5 + display_width(label)) * _LETTER_POINTS
        for rise in sorted(range(-200, 201), key=abs):
            bottom, top = height + rise - _LINE_POINTS / 2, height + rise + _LINE_POINTS / 2
            if not any(a < right and left < b and c < top and bottom < d for a, b, c, d in taken):
                break
        taken.append((left, right, bottom, top))
        rises.append(rise)
    return rises


@styled
def distribution_plot(entries: list[Entry]) -> Plot:
    """Share of questions with at least each character F1, one line per model; a higher line is better."""
    lines = len(entries)
    figure, (panel,) = new_figure(1, height=3.2 + 0.2 * lines, label_width=6, legend_rows=lines, x_label=True)
    handles = []
    for entry in entries:
        scores = entry.question_f1()
        steps = [(0.0, 1.0)]
        for i, score in enumerate(scores):
            share = 1 - i / len(scores)
            steps += [(score, share), (score, 1 - (i + 1) / len(scores))]
        dash = DASH_OF_LABEL[entry.label]
        panel.plot(*_columns([*steps, (1.0, 0.0)]), color=colour_of(entry), linestyle=dash, linewidth=1.5)
        handles.append(line(colour_of(entry), dash))
    highest = max((score for entry in entries for score in entry.question_f1()), default=1.0)
    panel.set_xlim(0, min(1.0, 1.05 * highest) or 1.0)
    panel.set_ylim(0, 1.02)
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    panel.set_xlabel(tr("character F1 of an answer, at least"))
    panel.set_title(tr("Share of answers"))
    legend_above(figure, handles, [entry.name for entry in entries])
    return finished(figure, "distribution", tr("Share of answers that reach each character F1"))


@styled
def loss_plot(names: list[str], logs: list[list[dict[str, Any]]]) -> Plot | None:
    """Training (thin) and validation (thick, dots) loss of every run over epochs; None when no run has a loss."""
    curves = [(training_curve(log, "loss"), training_curve(log, "validation_loss")) for log in logs]
    if not any(training or validation for training, validation in curves):
        return None
    figure, (panel,) = new_figure(
        1, height=3.1 + 0.2 * (len(names) - 1), label_width=6, legend_rows=len(names), x_label=True
    )
    handles = []
    for i, (training, validation) in enumerate(curves):
        colour = LIGHT[RUN_COLOURS[i % len(RUN_COLOURS)]]
        dash = DASHES[i // len(RUN_COLOURS) % 3]
        panel.plot(*_columns(training), color=colour, linewidth=0.9, alpha=0.55, linestyle=dash)
        panel.plot(*_columns(validation), color=colour, linewidth=1.8, linestyle=dash, marker="o", markersize=3.5)
        handles.append(line(colour, dash))
    panel.set_xlabel(tr("epoch"))
    panel.set_title(tr("Loss (nats per token): thin = training, thick with dots = validation"))
    legend_above(figure, handles, names)
    return finished(figure, "loss", tr("Training and validation loss over epochs"))


def training_curve(log: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(epoch, value) of the log's lines that have both as finite numbers; of a step logged twice, the later one."""
    points = {
        line.get("step", line["epoch"]): (line["epoch"], line[key])
        for line in log
        if isinstance(line, dict) and is_number(line.get("epoch")) and is_number(line.get(key))
    }
    return sorted(points.values())


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
