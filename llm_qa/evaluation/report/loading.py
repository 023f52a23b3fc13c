"""Loads what a report shows: runs' scores, paired comparisons, the ranking, costs and sample answers.

Everything is checked here; numbers of scores.json are shown and never recomputed. `rendering.py` renders the report. It
contains no date, so the same runs give the same bytes. Missing optional figures are shown as "–".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.phrasings import NEW_WORDINGS, PHRASINGS
from llm_qa.evaluation.evaluations import (
    Evaluation,
    check_same_data,
    check_same_generation,
    check_same_held_out,
    check_same_questions,
    evaluate_command,
    load_evaluation,
    load_kobest,
)
from llm_qa.evaluation.kobest import tested_tasks
from llm_qa.evaluation.metrics.catalogue import UNKNOWN, is_number
from llm_qa.evaluation.predict.run_data import evaluated_in
from llm_qa.evaluation.report.samples import Sample, choose_samples
from llm_qa.evaluation.statistics.comparison import compare_predictions, trials_needed
from llm_qa.evaluation.statistics.ranking import Entry, PairwiseComparison, compare_entries, most_tests, rank_entries
from llm_qa.evaluation.statistics.verdict import Verdict, verdict
from llm_qa.language import tr
from llm_qa.migrations import FORMAT_KEY, read_json, renamed_recipe_keys


@dataclass(frozen=True)
class RunFolder:
    """The files of a run folder that the report needs."""

    name: str
    path: Path
    tuned: Evaluation
    base: Evaluation | None
    nearest: Evaluation | None
    recipe: dict[str, Any]
    environment: dict[str, Any]
    training: dict[str, Any]
    log: list[dict[str, Any]]
    kobest: dict[str, Any]
    with_references: dict[str, Evaluation]  # by label, of a run that was trained without them

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Those that there are, by label."""
        labelled = {files.TUNED: self.tuned, files.BASE: self.base, files.NEAREST: self.nearest}
        found = {label: evaluation for label, evaluation in labelled.items() if evaluation}
        return {**found, **self.with_references}

    @property
    def hours(self) -> float | None:
        """Hours of training times processes, GPU hours where it trained on GPUs; None where unknown."""
        seconds, processes = self.training.get("wall_seconds"), self.training.get("processes", 1)
        return seconds * processes / 3600 if is_number(seconds) and is_number(processes) else None


@dataclass(frozen=True)
class RunReport:
    """Everything of one run that the report shows."""

    folder: RunFolder
    comparison: dict[str, Any] | None
    kobest: dict[str, Any] | None  # macro F1 of its tasks with corrected tests
    verdict: Verdict
    samples: dict[str, list[Sample]]

    @property
    def name(self) -> str:
        """The run's name in the report."""
        return self.folder.name

    @property
    def tuned(self) -> Evaluation:
        """The trained model's answers and scores."""
        return self.folder.tuned

    @property
    def base(self) -> Evaluation | None:
        """The base model's, where it was evaluated."""
        return self.folder.base

    @property
    def path(self) -> str:
        """The run's folder as the user named it."""
        return str(self.folder.path)


@dataclass(frozen=True)
class Report:
    """Runs that were evaluated on the same records of the same data; `tests` is the number of corrected p-values.

    `other_data` is True where that is not the data that the first of them was trained on.
    """

    split: str
    data: str
    data_sha256: str
    seed: int
    runs: list[RunReport]
    entries: list[Entry]
    pairwise_comparisons: list[PairwiseComparison]
    tests: int
    other_data: bool

    @property
    def asked(self) -> str:
        """The split in words, marked where it asks for trained facts in new wordings."""
        if self.runs[0].tuned.held_out == PHRASINGS:
            return tr("{split} split ({what})", split=self.split, what=tr(NEW_WORDINGS))
        return tr("{split} split", split=self.split)


def load_report(
    run_dirs: Sequence[str | Path],
    *,
    split: str = "test",
    data: Path | None = None,
    seed: int = 0,
    samples: int = 20,
    resamples: int = 2000,
) -> Report:
    """Read runs and compare them; UserError for what is missing, does not match or is of different data.

    `data` is the prepared folder that they were evaluated on, by default the one that each was trained on.
    """
    paths = [Path(run) for run in run_dirs]
    if not paths:
        raise UserError(tr("No run was named: give one or more run folders, like runs/tiny."))
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(tr("A run is named twice ({paths}): name each run once.", paths=", ".join(map(str, paths))))
    short = [path.resolve().name for path in paths]
    names = [str(path) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]
    folders = [_load_run(path, name, split, data) for path, name in zip(paths, names, strict=True)]
    first = folders[0]
    for folder in folders[1:]:
        remedy = evaluate_command(folder.path, split, data=first.tuned.data)
        check_same_held_out(first.path, first.tuned, folder.path, folder.tuned, split)
        check_same_data(str(first.path), first.tuned, str(folder.path), folder.tuned, remedy)
        check_same_questions(first.path, first.tuned, folder.path, folder.tuned, remedy)

    entries = rank_entries(names, [f.evaluations for f in folders], [f.hours for f in folders])
    kobest = {i: tested_tasks(folder.kobest) for i, folder in enumerate(folders) if folder.kobest}
    bases = {i: folder.base for i, folder in enumerate(folders) if folder.base}
    trials = trials_needed(most_tests(entries, len(bases), len(kobest)))
    how: dict[str, Any] = {"seed": seed, "resamples": resamples, "trials": trials}
    against_base = {
        i: compare_predictions(base.rows, folders[i].tuned.rows, name=str(folders[i].path), **how)
        for i, base in bases.items()
    }
    ranking = compare_entries(entries, against_base, kobest, **how)
    runs = [
        _run_report(folder, ranking.against_base.get(i), ranking.kobest.get(i), samples=samples, seed=seed)
        for i, folder in enumerate(folders)
    ]
    of_data, sha256 = first.tuned.data or UNKNOWN, first.tuned.data_sha256
    other_data = bool(evaluated_in(first.path, data))
    ranked = ranking.entries, ranking.pairwise_comparisons, ranking.tests
    return Report(split, of_data, sha256, seed, runs, *ranked, other_data)


def _load_run(path: Path, name: str, split: str, data: Path | None) -> RunFolder:
    if not path.is_dir():
        raise UserError(
            tr("The run {path} does not exist: name a folder that scripts/train.py wrote with --run.", path=path)
        )
    remedy = evaluate_command(path, split, data=str(data or ""))
    place = evaluated_in(path, data)
    tuned = load_evaluation(path, split, files.TUNED, place, remedy=remedy)
    if tuned is None:
        others = sorted(found.parent.parent.name for found in path.glob(f"eval/*/{split}/{files.SCORES}"))
        on = tr(" on {data}", data=data) if data else ""
        elsewhere = ""
        if others:
            elsewhere = tr(
                " (it was evaluated on other data, {others}: name that with --data)", others=", ".join(others)
            )
        raise UserError(
            tr(
                "{path} has no evaluation of the {split} split{on}{elsewhere}: run `{remedy}` "
                "first, or choose another --split.",
                path=path,
                split=split,
                on=on,
                elsewhere=elsewhere,
                remedy=remedy,
            )
        )
    base, nearest = (load_evaluation(path, split, label, place, remedy=remedy) for label in (files.BASE, files.NEAREST))
    for what, evaluation in (
        (tr("The base of {path}", path=path), base),
        (tr("The nearest training answers of {path}", path=path), nearest),
    ):
        if evaluation:
            check_same_data(what, evaluation, tr("its tuned model"), tuned, remedy)
            check_same_questions(what, evaluation, tr("its tuned model"), tuned, remedy)
    if base:
        check_same_generation(path, base, tuned, remedy)
    with_references = {}
    for label in (files.TUNED_WITH, files.BASE_WITH):
        if evaluation := load_evaluation(path, split, label, place, remedy=remedy):
            again = f"{remedy} --retrieval {evaluation.generation.get('retrieval')}"
            what = tr("{label} of {path}", label=label, path=path)
            check_same_data(what, evaluation, tr("its tuned model"), tuned, again)
            check_same_questions(what, evaluation, tr("its tuned model"), tuned, again)
            settings = {key: value for key, value in evaluation.generation.items() if key != "retrieval"}
            check_same_generation(path, replace(evaluation, generation=settings), tuned, again)
            with_references[label] = evaluation
    return RunFolder(
        name=name,
        path=path,
        tuned=tuned,
        base=base,
        nearest=nearest,
        recipe=_optional_recipe(path / files.RECIPE),
        environment=_optional_json(path / files.ENVIRONMENT),
        training=_optional_json(path / files.TRAINING),
        log=files.read_jsonl(path / files.LOG) if (path / files.LOG).is_file() else [],
        kobest=load_kobest(path),
        with_references=with_references,
    )


def _run_report(
    folder: RunFolder, comparison: dict[str, Any] | None, kobest: dict[str, Any] | None, *, samples: int, seed: int
) -> RunReport:
    limit = folder.tuned.generation.get("max_new_tokens")
    base_rows = folder.base.rows if folder.base else None
    return RunReport(
        folder=folder,
        comparison=comparison,
        kobest=kobest,
        verdict=verdict(
            comparison,
            folder.tuned.scores,
            finished=folder.training.get("finished") is not False,
            longest=limit if isinstance(limit, int) else None,
        ),
        samples=choose_samples(base_rows, folder.tuned.rows, count=samples, seed=seed),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _optional_recipe(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            tr("{path} is not readable YAML: {error}.", path=path, error=" ".join(str(error).split()))
        ) from None
    values = {key: text for key, text in value.items() if key != FORMAT_KEY} if isinstance(value, dict) else {}
    return renamed_recipe_keys(values, str(path))[0]
