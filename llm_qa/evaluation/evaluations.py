"""Writes and reads evaluations, with a UserError where one is incomplete or does not match another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.data.phrasings import PHRASINGS, RECORDS
from llm_qa.evaluation.metrics.catalogue import MEASURES, is_number
from llm_qa.evaluation.predict.contamination import contamination
from llm_qa.evaluation.statistics.scoring import check_rows, score_predictions
from llm_qa.migrations import read_json, stamped

Questions = frozenset[tuple[str, int]]  # (record id, question index) of everything that was asked


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: the rows of predictions.jsonl, and what scores.json says of them.

    What an earlier version did not write is empty or None.
    """

    rows: list[dict[str, Any]]  # as `check_rows` wants them
    scores: dict[str, Any]  # what `score_predictions` returns
    model: str = ""
    data: str = ""  # the prepared folder
    data_sha256: str = ""
    generation: dict[str, Any] = field(default_factory=dict)  # settings of the answers
    contamination: dict[str, Any] | None = None  # None: not compared with the training data
    answers_per_second: float | None = None
    held_out: str = RECORDS  # what the split holds out of the training data: records or phrasings

    @property
    def questions(self) -> Questions:
        """What was asked."""
        return frozenset((row["id"], row["question_index"]) for row in self.rows)


def evaluate_command(run: Path | str, split: str, *, data: str = "") -> str:
    """The command that evaluates a run and its base."""
    return f".venv/bin/python scripts/evaluate.py --run {run} --base{f' --data {data}' if data else ''} --split {split}"


# Keys of scores.json that are about the answers, besides those about the data and the scores.
WHOSE = (
    "label",
    "model",
    "generation",
    "fingerprint",
    "seconds",
    "reference_seconds",
    "answers_per_second",
    "processes",
)


def join_answers(questions: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`question_rows` with the answers of an earlier predictions.jsonl; empty where its questions are different."""
    places = [[(row.get("id"), row.get("question_index")) for row in rows] for rows in (questions, predictions)]
    if places[0] != places[1]:
        return []
    given = ("prediction", "stopped", "generated_tokens", "reference_bits")
    return [
        {**row, **{key: answered[key] for key in given}} for row, answered in zip(questions, predictions, strict=True)
    ]


def answered_before(folder: Path, key: str, questions: list[dict]) -> tuple[list[dict], dict] | None:
    """(rows, whose) of a finished evaluation with the same questions, weights and settings, else None."""
    if not (folder / files.SCORES).is_file() or read_json(folder / files.SCORES).get("fingerprint") != key:
        return None
    document, predictions = read_json(folder / files.SCORES), files.read_jsonl(folder / files.PREDICTIONS)
    rows = join_answers(questions, predictions)
    return (rows, {key: document[key] for key in WHOSE}) if rows else None


def say_what_is_replaced(folder: Path, about: dict[str, Any]) -> None:
    """Say that the answers in `folder` will be replaced, and which settings have changed."""
    if not (folder / files.SCORES).is_file():
        return
    before = read_json(folder / files.SCORES)
    old, new = ({"model": one.get("model"), **(one.get("generation") or {})} for one in (before, about))
    different = [f"{name} {old.get(name)} -> {new.get(name)}" for name in new if old.get(name) != new.get(name)]
    why = ", ".join(different) or "other questions, weights or code"
    say(f"note: the answers in {folder} are of other settings ({why}) and are replaced when these are complete")


def write_evaluation(folder: Path, rows: list[dict], about: dict[str, Any], *, seed: int) -> None:
    """Write predictions.jsonl, then scores.json: where the second exists, the first is complete."""
    (folder / files.SCORES).unlink(missing_ok=True)
    files.write_jsonl(folder / files.PREDICTIONS, rows)
    found = contamination(rows) if "closest_training" in rows[0] else None
    scores = score_predictions(rows, seed=seed)
    files.write_json(folder / files.SCORES, stamped({**about, "contamination": found, "scores": scores}))
    say(f"{about['label']}: {len(rows):,} answers written to {folder}")


def load_evaluation(
    run: Path, split: str, label: str, data: str = "", *, remedy: str | None = None
) -> Evaluation | None:
    """The evaluation of a label, checked; None where nothing was evaluated; UserError where it is incomplete.

    `data` is `run_data.data_name`, `remedy` the command that evaluates on that data. Scores of an older version, which
    treated records as independent, are computed again.
    """
    folder = files.evaluation_dir(run, split, label, data)
    if not folder.is_dir():
        return None
    again = f"run `{remedy or evaluate_command(run, split)}` again"
    for name in (files.PREDICTIONS, files.SCORES):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, so its evaluation did not finish: {again}.")
    rows, document = files.read_jsonl(folder / files.PREDICTIONS), read_json(folder / files.SCORES)
    check_rows(rows, str(folder / files.PREDICTIONS))
    scores = document.get("scores") if isinstance(document, dict) else None
    if not isinstance(scores, dict) or not isinstance(scores.get("metrics"), dict):
        raise UserError(f"{folder / files.SCORES} lacks scores of its answers: {again}.")
    generation, trained_on = document.get("generation") or {}, document.get("contamination") or None
    if not isinstance(generation, dict) or not isinstance(trained_on, dict | None):
        raise UserError(f"{folder / files.SCORES} holds a generation or contamination that is no mapping: {again}.")
    found = {"records": len({row["id"] for row in rows}), "questions": len(rows)}
    for what, count in found.items():
        if scores.get(what) != count:
            raise UserError(
                f"{folder / files.SCORES} is of {scores.get(what)} {what}, but {files.PREDICTIONS} beside it holds "
                f"{count}: {again}."
            )
    if not MEASURES.keys() <= scores["metrics"].keys() or "record_groups" not in scores:
        say(f"note: an earlier version scored {folder}: scored again, with today's measures and over groups of records")
        scores = score_predictions(rows, seed=scores.get("seed", 0))
    speed = document.get("answers_per_second")
    return Evaluation(
        rows,
        scores,
        **{key: str(document.get(key) or "") for key in ("model", "data", "data_sha256")},
        generation=generation,
        contamination=trained_on,
        answers_per_second=speed if is_number(speed) else None,
        held_out=PHRASINGS if document.get("held_out") == PHRASINGS else RECORDS,
    )


def load_kobest(run: Path) -> dict[str, Any]:
    """KoBEST's scores.json of a run, {} without one; UserError where it lacks scores that the report shows."""
    path = files.evaluation_dir(run, files.KOBEST) / files.SCORES
    if not path.is_file():
        return {}
    found = read_json(path)
    tasks = found.get("tasks") if isinstance(found, dict) else None
    if not isinstance(tasks, dict) or not all("p_value" in task.get("f1", {}) for task in tasks.values()):
        raise UserError(
            f"{path} lacks scores that the report shows (an older version wrote it): run "
            f"`.venv/bin/python scripts/evaluate_kobest.py --run {run} --kobest-dir FOLDER` again."
        )
    return found


def check_same_questions(
    one: Path | str, first: Evaluation, other: Path | str, second: Evaluation, remedy: str
) -> None:
    """UserError where two evaluations of the same data were not asked the same questions."""
    if first.questions != second.questions:
        different = len(first.questions ^ second.questions)
        raise UserError(
            f"{one} and {other} were not asked the same questions ({different} differ; was one evaluated "
            f"with --limit?): run `{remedy}` again for both, with one --limit or none."
        )


def check_same_held_out(one: Path, first: Evaluation, other: Path, second: Evaluation, split: str) -> None:
    """UserError where one run was asked facts that it was not taught, the other trained facts in new wordings."""
    if first.held_out != second.held_out:
        what = {RECORDS: "whole records", PHRASINGS: "new wordings of trained records"}
        raise UserError(
            f"The {split} split of {one} holds out {what[first.held_out]} and that of {other} {what[second.held_out]}, "
            "so their scores answer different questions: make a report for each, or evaluate both on the same --data."
        )


def check_same_data(one: str, first: Evaluation, other: str, second: Evaluation, remedy: str) -> None:
    """UserError where two evaluations are of different data."""
    if first.data_sha256 != second.data_sha256:
        told = [f"{e.data or 'unknown data'} (sha256 {e.data_sha256[:12] or 'unknown'})" for e in (first, second)]
        raise UserError(
            f"{one} was evaluated on {told[0]} and {other} on {told[1]}, and scores of different data cannot be "
            f"compared: run `{remedy}`, with one --data for all."
        )


def check_same_generation(run: Path, base: Evaluation, tuned: Evaluation, remedy: str) -> None:
    """UserError where the base and the tuned model of a run answered with different settings."""
    before, after = base.generation, tuned.generation
    different = [
        f"{key} {before.get(key)!r} and {after.get(key)!r}"
        for key in sorted({*before, *after} - {"batch_size"})  # the batch size does not change answers
        if before.get(key) != after.get(key)
    ]
    if different:
        raise UserError(
            f"The base and the tuned model of {run} answered with different settings ({'; '.join(different)}): run "
            f"`{remedy}` again."
        )
