"""Records and a model -> rows of predictions.jsonl: an answer to every question, and the bits of every reference.

Batches are resumable and shared by processes (`batches.py`); each is drawn from a seed of its own, so who answers it,
and when, changes no answer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_qa.data.records import QARecord
from llm_qa.data.text import normalize_lines
from llm_qa.evaluation.batches import forget, in_batches
from llm_qa.evaluation.generation import GenerationSettings, generate_answers, reference_bits, static_decoder
from llm_qa.evaluation.processes import wait_for_all

REFERENCES_AT_ONCE = 64
REFILLS = 4  # batches that the static decoder is given at once: what finishes early makes room for the next question


@dataclass(frozen=True)
class Predictions:
    """Rows of predictions.jsonl and the seconds that answering and scoring the references took."""

    rows: list[dict[str, Any]]
    answering_seconds: float
    references_seconds: float


def fingerprint(records: list[QARecord], weights: Path, *settings: Any) -> str:
    """Hex digest of all that decides predictions: what is asked, of which weights, how.

    Weights count by name, size and time of change: hashing 26 GB would take a minute.
    """
    found = sorted(weights.glob("*.safetensors")) if weights.is_dir() else []
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    value = [[record.to_json() for record in records], str(weights), stamps, *settings]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def question_rows(records: list[QARecord]) -> list[dict[str, Any]]:
    """The part of predictions.jsonl that no model decides, a row a question."""
    return [
        {
            "id": record.id,
            "question_index": index,
            "question": question,
            **({"context": record.context} if record.context else {}),
            "category": record.category,
            "references": list(record.answers),
            "reference_characters": [len(normalize_lines(reference)) for reference in record.answers],
        }
        for record in records
        for index, question in enumerate(record.questions)
    ]


def predict(
    model,
    tokenizer,
    rows: list[dict[str, Any]],
    settings: GenerationSettings,
    batch_size: int,
    folder: Path,
    key: str,
    decoder: str = "plain",
) -> Predictions:
    """Answer every question of `question_rows` and score every reference; the same rows in every process.

    What is done is kept in .part files in `folder` under `key` until `forget_parts`. `decoder` is one of DECODERS.
    """
    questions = [(row["question"], row.get("context", "")) for row in rows]
    triples = [(row["question"], text, row.get("context", "")) for row in rows for text in row["references"]]

    static = static_decoder(model, tokenizer, questions, settings, batch_size) if decoder == "static" else None

    def answer(number: int, batch: list[tuple[str, str]]) -> list[Any]:
        seeded = replace(settings, seed=settings.seed + number)
        answers = generate_answers(model, tokenizer, batch, seeded, batch_size=batch_size, decoder=static, quiet=True)
        return [asdict(answer) for answer in answers]

    def score(number: int, batch: list[tuple[str, str, str]]) -> list[Any]:
        return reference_bits(model, tokenizer, batch, quiet=True)

    answers_part, references_part = _parts(folder)
    answers = in_batches(
        questions,
        [sum(map(len, question)) for question in questions],
        answer,
        batch_size=REFILLS * batch_size if static else batch_size,
        part=answers_part,
        key=key,
        what="answering",
    )
    static = None  # references are scored without its cache and folded weights in memory
    scored = in_batches(
        triples,
        [sum(map(len, triple)) for triple in triples],
        score,
        batch_size=REFERENCES_AT_ONCE,
        part=references_part,
        key=key,
        what="scoring references",
    )
    bits = iter(scored.values)
    predicted = [
        {
            **row,
            "prediction": given["text"],
            "stopped": given["stopped"],
            "generated_tokens": given["tokens"],
            "reference_bits": [next(bits) for _ in row["references"]],
        }
        for row, given in zip(rows, answers.values, strict=True)
    ]
    return Predictions(predicted, answers.seconds, scored.seconds)


def join_answers(questions: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`question_rows` with the answers of an earlier predictions.jsonl; empty where that is not of these questions."""
    places = [[(row.get("id"), row.get("question_index")) for row in rows] for rows in (questions, predictions)]
    if places[0] != places[1]:
        return []
    given = ("prediction", "stopped", "generated_tokens", "reference_bits")
    return [
        {**row, **{key: answered[key] for key in given}} for row, answered in zip(questions, predictions, strict=True)
    ]


def forget_parts(folder: Path) -> None:
    """Remove the .part files once the results are written; every process calls it."""
    wait_for_all()
    for part in _parts(folder):
        forget(part)


def _parts(folder: Path) -> tuple[Path, Path]:
    return folder / "answers", folder / "references"
