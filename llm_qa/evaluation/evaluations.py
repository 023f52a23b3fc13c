"""Reading evaluations back: scores and predictions that are whole and fit together, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.evaluation.metrics.catalogue import MEASURES
from llm_qa.evaluation.scoring import check_rows, score_predictions
from llm_qa.migrations import read_json

Evaluation = tuple[dict[str, Any], list[dict[str, Any]]]  # scores.json, predictions.jsonl
Questions = frozenset[tuple[str, int]]  # (record id, question index) of everything that was asked


def evaluate_command(run: Path | str, split: str, *, data: str = "") -> str:
    """The command that evaluates a run and its base."""
    return f"python scripts/evaluate.py --run {run} --base{f' --data {data}' if data else ''} --split {split}"


def load_evaluation(run: Path, split: str, label: str) -> Evaluation | None:
    """(scores.json, predictions); None where nothing was evaluated; UserError where it is incomplete."""
    folder = files.evaluation_dir(run, split, label)
    if not folder.is_dir():
        return None
    again = f"run `{evaluate_command(run, split)}` again"
    for name in (files.PREDICTIONS, files.SCORES):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, so its evaluation did not finish: {again}.")
    rows, document = files.read_jsonl(folder / files.PREDICTIONS), read_json(folder / files.SCORES)
    check_rows(rows, str(folder / files.PREDICTIONS))
    scores = document.get("scores") if isinstance(document, dict) else None
    metrics = scores.get("metrics") if isinstance(scores, dict) else None
    if not isinstance(metrics, dict):
        raise UserError(f"{folder / files.SCORES} lacks scores of its answers: {again}.")
    found = {"records": len({row["id"] for row in rows}), "questions": len(rows)}
    for what, count in found.items():
        if scores.get(what) != count:
            raise UserError(
                f"{folder / files.SCORES} is of {scores.get(what)} {what}, but {files.PREDICTIONS} beside it holds "
                f"{count}: {again}."
            )
    if not MEASURES.keys() <= metrics.keys() or "groups" not in scores:
        say(f"note: an earlier version wrote {folder / files.SCORES}: its answers are scored with today's measures")
        document["scores"] = score_predictions(rows)
    return document, rows


def load_kobest(run: Path) -> dict[str, Any]:
    """KoBEST's scores.json of a run, empty where it was not scored; UserError where it lacks what the report shows."""
    path = files.evaluation_dir(run, files.KOBEST) / files.SCORES
    if not path.is_file():
        return {}
    found = read_json(path)
    tasks = found.get("tasks") if isinstance(found, dict) else None
    if not isinstance(tasks, dict) or not all("p_value" in task.get("f1", {}) for task in tasks.values()):
        raise UserError(
            f"{path} lacks scores that the report shows (an older version wrote it): run "
            f"`python scripts/evaluate_kobest.py --run {run} --kobest-dir FOLDER` again."
        )
    return found


def asked(rows: list[dict[str, Any]]) -> Questions:
    """What was asked."""
    return frozenset((row["id"], row["question_index"]) for row in rows)


def check_same_questions(one: Path | str, first: Questions, other: Path | str, second: Questions, remedy: str) -> None:
    """UserError where two evaluations of the same data were not asked the same questions."""
    if first != second:
        raise UserError(
            f"{one} and {other} were not asked the same questions ({len(first ^ second)} differ; was one evaluated "
            f"with --limit?): run `{remedy}` again for both, with one --limit or none."
        )


def check_same_data(one: str, first: dict[str, Any], other: str, second: dict[str, Any], remedy: str) -> None:
    """UserError where two evaluations are of different data."""
    if first.get("data_sha256") != second.get("data_sha256"):
        told = [f"{d.get('data', 'unknown data')} (sha256 {str(d.get('data_sha256'))[:12]})" for d in (first, second)]
        raise UserError(
            f"{one} was evaluated on {told[0]} and {other} on {told[1]}, and scores of different data cannot stand "
            f"side by side: run `{remedy}`, with one --data for all."
        )


def check_same_generation(run: Path, base: dict[str, Any], tuned: dict[str, Any], remedy: str) -> None:
    """UserError where the base and the tuned model of a run answered with different settings."""
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
