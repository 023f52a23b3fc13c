"""Evaluations on the disk: written whole, and read back whole and fitting together, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.evaluation.metrics.catalogue import MEASURES
from llm_qa.evaluation.predict.contamination import contamination
from llm_qa.evaluation.statistics.scoring import check_rows, score_predictions
from llm_qa.migrations import read_json, stamped

Evaluation = tuple[dict[str, Any], list[dict[str, Any]]]  # scores.json, predictions.jsonl
Questions = frozenset[tuple[str, int]]  # (record id, question index) of everything that was asked


def evaluate_command(run: Path | str, split: str, *, data: str = "") -> str:
    """The command that evaluates a run and its base."""
    return f"python scripts/evaluate.py --run {run} --base{f' --data {data}' if data else ''} --split {split}"


# What scores.json says of the answers themselves, beside the data and the scores.
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
    """`question_rows` with the answers of an earlier predictions.jsonl; empty where that is not of these questions."""
    places = [[(row.get("id"), row.get("question_index")) for row in rows] for rows in (questions, predictions)]
    if places[0] != places[1]:
        return []
    given = ("prediction", "stopped", "generated_tokens", "reference_bits")
    return [
        {**row, **{key: answered[key] for key in given}} for row, answered in zip(questions, predictions, strict=True)
    ]


def answered_before(folder: Path, key: str, questions: list[dict]) -> tuple[list[dict], dict] | None:
    """(rows, whose) of a finished evaluation of the same questions, weights and settings; it is only scored again."""
    if not (folder / files.SCORES).is_file() or read_json(folder / files.SCORES).get("fingerprint") != key:
        return None
    document, predictions = read_json(folder / files.SCORES), files.read_jsonl(folder / files.PREDICTIONS)
    rows = join_answers(questions, predictions)
    return (rows, {key: document[key] for key in WHOSE}) if rows else None


def say_what_is_replaced(folder: Path, about: dict[str, Any]) -> None:
    """Say that answers which stand in `folder` will make room for others, and by which settings these differ."""
    if not (folder / files.SCORES).is_file():
        return
    before = read_json(folder / files.SCORES)
    old, new = ({"model": one.get("model"), **(one.get("generation") or {})} for one in (before, about))
    different = [f"{name} {old.get(name)} -> {new.get(name)}" for name in new if old.get(name) != new.get(name)]
    why = ", ".join(different) or "other questions, weights or code"
    say(f"note: the answers in {folder} are of other settings ({why}) and are replaced when these are complete")


def write_evaluation(folder: Path, rows: list[dict], about: dict[str, Any], *, seed: int) -> None:
    """predictions.jsonl, then scores.json: whoever finds the second finds what it is of."""
    (folder / files.SCORES).unlink(missing_ok=True)
    files.write_jsonl(folder / files.PREDICTIONS, rows)
    found = contamination(rows) if "closest_training" in rows[0] else None
    scores = score_predictions(rows, seed=seed)
    files.write_json(folder / files.SCORES, stamped({**about, "contamination": found, "scores": scores}))
    say(f"{about['label']}: {len(rows):,} answers written to {folder}")


def load_evaluation(
    run: Path, split: str, label: str, data: str = "", *, remedy: str | None = None
) -> Evaluation | None:
    """(scores.json, predictions); None where nothing was evaluated; UserError where it is incomplete.

    `data` is `run_data.data_name`, `remedy` the command that evaluates on that data. Scores of an older version, which
    took records for independent, are made again.
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
    if not MEASURES.keys() <= metrics.keys() or "record_groups" not in scores:
        say(f"note: an earlier version scored {folder}: scored again, with today's measures and over groups of records")
        document = {**document, "scores": score_predictions(rows, seed=scores.get("seed", 0))}
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
