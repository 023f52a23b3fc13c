"""The report: runs' scores, paired comparisons, costs and sample answers -> one HTML page, its Markdown twin, plots.

`load_report` reads and checks everything (a number in scores.json is shown, never computed again), `write_report`
draws it, `final_screen` is the short table for the terminal. Nothing of the time of day goes in: the same runs give
the same bytes. Missing optional figures are shown as "–".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_qa import files
from llm_qa.console import UserError, format_table
from llm_qa.evaluation import plots
from llm_qa.evaluation.comparison import BETTER, WORSE, Sample, Verdict, choose_samples, compare_predictions, verdict
from llm_qa.evaluation.metrics.catalogue import CHARACTER_F1, MEASURES, UNKNOWN
from llm_qa.evaluation.original import ORIGINAL_DEVICE, ORIGINAL_PAIRS, ORIGINAL_SOURCE
from llm_qa.evaluation.scoring import check_rows
from llm_qa.evaluation.templates.escaping import TEMPLATES, html_environment, markdown_environment, visible
from llm_qa.evaluation.templates.views import (
    COST_HEADER,
    category_rows,
    cost_rows,
    original_rows,
    score_rows,
    settings,
)

HTML, MARKDOWN = "report.html", "report.md"


@dataclass(frozen=True)
class RunReport:
    """Everything of one run that the report shows. `tuned` and `base` are whole scores.json objects."""

    name: str
    path: str
    tuned: dict[str, Any]
    base: dict[str, Any] | None
    comparison: dict[str, Any] | None
    verdict: Verdict
    samples: dict[str, list[Sample]]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    training: dict[str, Any]
    log: list[dict[str, Any]]
    questions: frozenset[tuple[str, int]]  # (record id, question index) of everything that was asked


@dataclass(frozen=True)
class Report:
    """Runs that were evaluated on the same records of the same data."""

    split: str
    data: str
    data_sha256: str
    seed: int
    runs: list[RunReport]


def load_report(
    run_dirs: Sequence[str | Path], *, split: str = "test", seed: int = 0, samples: int = 5, resamples: int = 2000
) -> Report:
    """Read runs and compare each with its base; UserError for what is missing, does not fit or is of different data."""
    paths = [Path(run) for run in run_dirs]
    if not paths:
        raise UserError("No run was named: give one or more run folders, like runs/tiny.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"A run is named twice ({', '.join(map(str, paths))}): name each run once.")
    short = [path.resolve().name for path in paths]
    names = [str(path) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]
    runs = [_load_run(path, name, split, seed, samples, resamples) for path, name in zip(paths, names, strict=True)]
    first = runs[0]
    for run in runs[1:]:
        remedy = evaluate_command(run.path, split, data=str(first.tuned.get("data", "")))
        _check_same_data(first.path, first.tuned, run.path, run.tuned, remedy)
        _check_same_questions(first, run, split)
    return Report(split, str(first.tuned.get("data", UNKNOWN)), str(first.tuned.get("data_sha256", "")), seed, runs)


def _load_run(path: Path, name: str, split: str, seed: int, samples: int, resamples: int) -> RunReport:
    if not path.is_dir():
        raise UserError(f"The run {path} does not exist: name a folder that scripts/train.py wrote with --run.")
    remedy = evaluate_command(path, split)
    evaluated = _load_evaluation(path, split, base=False)
    if evaluated is None:
        raise UserError(
            f"{path} has no evaluation of the {split} split: run `{remedy}` first, or choose another --split."
        )
    tuned, rows = evaluated
    base, base_rows, comparison = None, None, None
    if (evaluated_base := _load_evaluation(path, split, base=True)) is not None:
        base, base_rows = evaluated_base
        _check_same_data(f"The base of {path}", base, "the tuned model", tuned, remedy)
        _check_same_generation(path, base, tuned, remedy)
        comparison = compare_predictions(base_rows, rows, seed=seed, resamples=resamples, name=str(path))
    training = _optional_json(path / files.TRAINING)
    return RunReport(
        name=name,
        path=str(path),
        tuned=tuned,
        base=base,
        comparison=comparison,
        verdict=verdict(comparison, tuned["scores"], finished=training.get("finished") is not False),
        samples=choose_samples(base_rows, rows, count=samples, seed=seed),
        recipe=_optional_recipe(path / files.RECIPE),
        environment=_optional_json(path / files.ENVIRONMENT),
        training=training,
        log=files.read_jsonl(path / files.LOG) if (path / files.LOG).is_file() else [],
        questions=frozenset((row["id"], row["question_index"]) for row in rows),
    )


def evaluate_command(run: Path | str, split: str, *, data: str = "") -> str:
    """The command that evaluates a run and its base."""
    return f"python scripts/evaluate.py --run {run} --base{f' --data {data}' if data else ''} --split {split}"


def _load_evaluation(run: Path, split: str, *, base: bool) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """(scores.json, predictions); None where nothing was evaluated; UserError where it is incomplete."""
    folder = files.evaluation_dir(run, split, base=base)
    if not folder.is_dir():
        return None
    again = f"run `{evaluate_command(run, split)}` again"
    for name in (files.PREDICTIONS, files.SCORES):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, so its evaluation did not finish: {again}.")
    rows, document = files.read_jsonl(folder / files.PREDICTIONS), files.read_json(folder / files.SCORES)
    check_rows(rows, str(folder / files.PREDICTIONS))
    scores = document.get("scores") if isinstance(document, dict) else None
    metrics = scores.get("metrics") if isinstance(scores, dict) else None
    if not isinstance(metrics, dict) or not MEASURES.keys() <= metrics.keys() or "categories" not in scores:
        raise UserError(f"{folder / files.SCORES} lacks scores that the report shows: {again}.")
    found = {"records": len({row["id"] for row in rows}), "questions": len(rows)}
    for what, count in found.items():
        if scores.get(what) != count:
            raise UserError(
                f"{folder / files.SCORES} is of {scores.get(what)} {what}, but {files.PREDICTIONS} beside it holds "
                f"{count}: {again}."
            )
    return document, rows


def _check_same_data(one: str, first: dict[str, Any], other: str, second: dict[str, Any], remedy: str) -> None:
    if first.get("data_sha256") != second.get("data_sha256"):
        told = [f"{d.get('data', 'unknown data')} (sha256 {str(d.get('data_sha256'))[:12]})" for d in (first, second)]
        raise UserError(
            f"{one} was evaluated on {told[0]} and {other} on {told[1]}, and scores of different data cannot stand "
            f"side by side: run `{remedy}`, with one --data for all."
        )


def _check_same_generation(run: Path, base: dict[str, Any], tuned: dict[str, Any], remedy: str) -> None:
    before, after = base.get("generation") or {}, tuned.get("generation") or {}
    different = [
        f"{key} {before.get(key)!r} and {after.get(key)!r}"
        for key in sorted({*before, *after} - {"batch_size"})  # how many are answered at once is no setting of answers
        if before.get(key) != after.get(key)
    ]
    if different:
        raise UserError(
            f"The base and the tuned model of {run} answered with different settings ({'; '.join(different)}): run "
            f"`{remedy}` again."
        )


def _check_same_questions(first: RunReport, run: RunReport, split: str) -> None:
    if first.questions != run.questions:
        count = len(first.questions ^ run.questions)
        raise UserError(
            f"{first.path} and {run.path} were not asked the same questions ({count} differ; was one evaluated with "
            f"--limit?): run `{evaluate_command(run.path, split)}` again for both, with one --limit or none."
        )


def _optional_json(path: Path) -> dict[str, Any]:
    value = files.read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _optional_recipe(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML: {' '.join(str(error).split())}.") from None
    return value if isinstance(value, dict) else {}


def draw_plots(report: Report) -> dict[str, plots.Plot]:
    """Stem -> plot; a run without categories has no category plot, runs without logs no loss plot."""
    names = [run.name for run in report.runs]
    pairs = [(run.base["scores"] if run.base else None, run.tuned["scores"]) for run in report.runs]
    drawn = [plots.scores_plot(names, pairs), plots.loss_plot(names, [run.log for run in report.runs])]
    parts = [part for pair in pairs for scores in pair if scores for part in scores["categories"].values()]
    largest = plots.largest_value(parts, CHARACTER_F1)  # one axis for all runs
    for number, (name, (base, tuned)) in enumerate(zip(names, pairs, strict=True), 1):
        if tuned["categories"]:
            drawn.append(plots.categories_plot(number, name, base, tuned, largest=largest))
    return {plot.name: plot for plot in drawn if plot is not None}


def render(report: Report, drawn: dict[str, plots.Plot]) -> tuple[str, str]:
    """(report.html, report.md) as text."""
    from markupsafe import Markup

    values = {
        "report": report,
        "plots": drawn,
        "palette": plots.PALETTE,
        "fonts": Markup(plots.FONTS),
        "css": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "measures": MEASURES,
        "definitions": report.runs[0].tuned["scores"].get("definitions", {}),
        "cost_header": COST_HEADER,
        "cost_rows": cost_rows(report),
        "original_rows": original_rows(),
        "original_pairs": ORIGINAL_PAIRS,
        "original_source": ORIGINAL_SOURCE,
        "original_device": ORIGINAL_DEVICE,
        "score_rows": lambda run: score_rows(run.base and run.base["scores"], run.tuned["scores"], run.comparison),
        "category_rows": category_rows,
        "settings": lambda run: settings(run, report),
        "inline_svg": lambda plot: Markup(plots.inline_svg(plot, plot.name)),
        "f1": MEASURES[CHARACTER_F1].format,
        "evaluate_command": evaluate_command,
        "tone": {BETTER: "good", WORSE: "bad"},
    }

    return (
        html_environment().get_template("report.html.j2").render(values),
        markdown_environment().get_template("report.md.j2").render(values),
    )


def write_report(report: Report, out: str | Path) -> Path:
    """Write report.html, report.md and the plots as .svg into `out`; returns the HTML's path."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder.")
    drawn = draw_plots(report)
    page, twin = render(report, drawn)
    for plot in drawn.values():
        files.write_text(out / f"{plot.name}.svg", plot.svg)
    files.write_text(out / MARKDOWN, twin)
    files.write_text(out / HTML, page)
    return out / HTML


def final_screen(report: Report) -> str:
    """The short base-vs-tuned tables for the terminal, a run after another, each with its verdict."""
    blocks = []
    for run in report.runs:
        scores = run.tuned["scores"]
        rows = [
            [
                f"{row['measure'].title} {row['measure'].arrow}".rstrip(),
                row["base"],
                row["tuned"],
                row["difference"],
                row["difference_span"] or UNKNOWN,
                row["reading"] or UNKNOWN,
            ]
            for row in score_rows(run.base and run.base["scores"], scores, run.comparison)
        ]
        title = f"{run.name}: {report.split} split, {scores['records']:,} records, {scores['questions']:,} questions"
        table = format_table(["", "base", "tuned", "difference", "95% interval", "tuned is"], rows)
        blocks.append(f"{title}\n\n{table}\n\n{run.verdict.text}")
    return visible("\n\n".join(blocks))
