"""Renders the report: one HTML page, the same as Markdown, plots, and the short tables on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, format_table
from llm_qa.evaluation.evaluations import evaluate_command
from llm_qa.evaluation.kobest import KOBEST_NOTE, PUBLISHED_SOURCE
from llm_qa.evaluation.metrics.catalogue import CHARACTER_F1, MEASURES, UNKNOWN
from llm_qa.evaluation.report import plots
from llm_qa.evaluation.report.answers_table import CSV, XLSX, answers_table, as_csv, as_workbook
from llm_qa.evaluation.report.escaping import TEMPLATES, html_environment, markdown_environment, visible
from llm_qa.evaluation.report.loading import Report, RunReport
from llm_qa.evaluation.report.original import ORIGINAL_DEVICE, ORIGINAL_PAIRS, ORIGINAL_SOURCE
from llm_qa.evaluation.report.overview import (
    closeness_rows,
    headline,
    kobest_tables,
    measured,
    pairwise_rows,
    ranking_header,
    ranking_rows,
    trained_on,
)
from llm_qa.evaluation.report.plotting import FONTS, PALETTE, Plot, inline_svg, largest_value
from llm_qa.evaluation.report.summary import summarize
from llm_qa.evaluation.report.views import COST_HEADER, cost_rows, group_rows, original_rows, score_rows, settings
from llm_qa.evaluation.statistics.comparison import BETTER, WORSE
from llm_qa.evaluation.statistics.grouping import ANSWER_LENGTH, CATEGORY, CLOSE_SIMILARITY, QUESTION_TYPE
from llm_qa.evaluation.statistics.verdict import count_words
from llm_qa.language import language, tr

HTML, MARKDOWN = "report.html", "report.md"
GROUP_STEMS = {CATEGORY: "categories", QUESTION_TYPE: "question-types", ANSWER_LENGTH: "answer-lengths"}


def draw_plots(report: Report) -> dict[str, Plot]:
    """Stem -> plot; without a plot of categories or losses where runs have none."""
    names = [run.name for run in report.runs]
    pairs = [(run.base.scores if run.base else None, run.tuned.scores) for run in report.runs]
    drawn = [
        plots.cost_plot(report.entries),
        plots.scores_plot(names, pairs),
        plots.distribution_plot(report.entries),
        plots.loss_plot(names, [run.folder.log for run in report.runs]),
    ]
    for grouping, stem in GROUP_STEMS.items():
        parts = [part for pair in pairs for scores in pair if scores for part in _groups(scores, grouping).values()]
        largest = largest_value(parts, CHARACTER_F1)  # one axis for all runs
        for number, (name, (base, tuned)) in enumerate(zip(names, pairs, strict=True), 1):
            if len(_groups(tuned, grouping)) > 1 or (grouping == CATEGORY and _groups(tuned, grouping)):
                title = tr("Character F1 by {grouping}: {run}", grouping=tr(grouping), run=name)
                before = _groups(base, grouping) if base else None
                drawn.append(
                    plots.groups_plot(f"{stem}-{number}", title, before, _groups(tuned, grouping), largest=largest)
                )
    return {plot.name: plot for plot in drawn if plot is not None}


def _groups(scores: dict[str, Any], grouping: str) -> dict[str, Any]:
    return scores["groups"].get(grouping, {})


def render(report: Report, drawn: dict[str, Plot]) -> tuple[str, str]:
    """(report.html, report.md) as text."""
    from markupsafe import Markup

    values = {
        "tr": tr,
        "language": language(),
        "report": report,
        "plots": drawn,
        "palette": PALETTE,
        "fonts": Markup(FONTS),
        "css": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "measures": {key: MEASURES[key] for key in measured(report)},
        "unmeasured": [measure.title for key, measure in MEASURES.items() if key not in measured(report)],
        "summary": summarize(report),
        "headline": headline(report),
        "ranking_header": ranking_header(report),
        "ranking_rows": ranking_rows(report),
        "pairwise_comparisons": pairwise_rows(report),
        "closeness": closeness_rows(report),
        "groupings": GROUP_STEMS,
        "kobest": kobest_tables(report),
        "kobest_note": KOBEST_NOTE,
        "kobest_source": PUBLISHED_SOURCE,
        "closeness_from": f"{CLOSE_SIMILARITY:.0%}",
        "definitions": report.runs[0].tuned.scores.get("definitions", {}),
        "cost_header": COST_HEADER,
        "cost_rows": cost_rows(report),
        "original_rows": original_rows(),
        "original_pairs": ORIGINAL_PAIRS,
        "original_source": ORIGINAL_SOURCE,
        "original_device": ORIGINAL_DEVICE,
        "score_rows": lambda run: _score_rows(run, report),
        "group_rows": group_rows,
        "settings": lambda run: settings(run, report),
        "inline_svg": lambda plot: Markup(inline_svg(plot, plot.name)),
        "f1": MEASURES[CHARACTER_F1].format,
        "evaluate_command": evaluate_command,
        "tone": {BETTER: "good", WORSE: "bad"},
        "tones": {tr(BETTER): "good", tr(WORSE): "bad"},
        "count_words": count_words,
    }

    return (
        html_environment().get_template("report.html.j2").render(values),
        markdown_environment().get_template("report.md.j2").render(values),
    )


def _score_rows(run: RunReport, report: Report) -> list[dict[str, Any]]:
    return score_rows(run.base.scores if run.base else None, run.tuned.scores, run.comparison, measured(report))


def write_report(report: Report, out: str | Path) -> Path:
    """Write report.html, report.md, the plots as .svg and every answer as .csv and .xlsx; returns the HTML's path."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(tr("--out {out} is a file: name a folder.", out=out))
    drawn = draw_plots(report)
    page, markdown = render(report, drawn)
    for plot in drawn.values():
        files.write_text(out / f"{plot.name}.svg", plot.svg)
    header, rows = answers_table(report)
    files.write_text(out / CSV, as_csv(header, rows))
    files.write_bytes(out / XLSX, as_workbook(header, rows))
    files.write_text(out / MARKDOWN, markdown)
    files.write_text(out / HTML, page)
    return out / HTML


def final_screen(report: Report) -> str:
    """Text for the terminal, its tables in 80 columns: questions trained on, then each run's scores and verdict."""
    blocks = trained_on(report)
    for run in report.runs:
        scores = run.tuned.scores
        rows = [
            [
                f"{row['measure'].title} {row['measure'].arrow}".rstrip(),
                row["base"],
                row["tuned"],
                row["difference_span"] or row["difference"] or UNKNOWN,
                row["reading"] or UNKNOWN,
            ]
            for row in _score_rows(run, report)
        ]
        title = f"{run.name}: {report.asked}, {count_words(scores)}"
        header = ["", tr("base"), tr("tuned"), tr("difference (95%)"), tr("tuned is")]
        table = format_table(header, rows)
        blocks.append(f"{title}\n\n{table}\n\n{run.verdict.text}")
    return visible("\n\n".join(blocks))
