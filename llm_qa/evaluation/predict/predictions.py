"""Rows of predictions.jsonl: a model's answer to every question, and the bits of every reference.

Batches are resumable and divided among processes (`batches.py`); each has a seed of its own, so answers do not depend
on the process or the time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_qa.data.plain_prompt import Context, Questions, context_text
from llm_qa.data.records import EARLIER, QARecord, messages_from_json, messages_json
from llm_qa.data.text import normalize_lines
from llm_qa.distributed import wait_for_all
from llm_qa.evaluation.predict.batches import Work, delete_partial_results, in_batches
from llm_qa.inference.decoders import decoder_for
from llm_qa.inference.generate import generate_answers, reference_bits
from llm_qa.inference.settings import GenerationSettings

REFERENCES_AT_ONCE = 64
REFILLS = 4  # batches per call of the static decoder, in which a finished row takes the next question


@dataclass(frozen=True)
class Predictions:
    """Rows of predictions.jsonl and the seconds that answering and scoring the references took."""

    rows: list[dict[str, Any]]
    answering_seconds: float
    references_seconds: float


def question_rows(records: list[QARecord], groups: dict[str, str]) -> list[dict[str, Any]]:
    """The part of predictions.jsonl without a model, one row per question; `groups` maps record id to group name."""
    return [
        {
            "id": record.id,
            "group": groups[record.id],
            "question_index": index,
            "question": question,
            **{key: text for key in ("context", "system") if (text := getattr(record, key))},
            **({EARLIER: messages_json(record.given)} if isinstance(record.given, tuple) else {}),
            "category": record.category,
            "references": list(record.answers),
            "reference_characters": [len(normalize_lines(reference)) for reference in record.answers],
        }
        for record in records
        for index, question in enumerate(record.questions)
    ]


def asked_of(rows: list[dict[str, Any]]) -> Questions:
    """(question, context) of each row."""
    return [(row["question"], messages_from_json(row.get(EARLIER, [])) or row.get("context", "")) for row in rows]


def answer_questions(
    model,
    tokenizer,
    questions: Questions,
    settings: GenerationSettings,
    *,
    batch_size: int,
    part: Path,
    key: str,
    decoder: str = "plain",
) -> Work:
    """Answer questions that fit (`fit_questions`) in resumable batches: the fields of an Answer for each.

    Finished batches are kept in `part`.<rank>.part under `key` until `delete_partial_results(part)`. `decoder` is
    plain or static (`choose_decoder`).
    """
    static = decoder_for(model, tokenizer, questions, settings, batch_size) if decoder == "static" else None

    def answer(number: int, batch: Questions) -> list[Any]:
        seeded = replace(settings, seed=settings.seed + number)
        answers = generate_answers(model, tokenizer, batch, seeded, batch_size=batch_size, decoder=static, quiet=True)
        return [asdict(answer) for answer in answers]

    return in_batches(
        questions,
        [len(question) + len(context_text(context)) for question, context in questions],
        answer,
        batch_size=REFILLS * batch_size if static else batch_size,
        part=part,
        key=key,
        what="answering",
    )


def predict(
    model,
    tokenizer,
    rows: list[dict[str, Any]],
    questions: Questions,
    settings: GenerationSettings,
    batch_size: int,
    folder: Path,
    key: str,
    decoder: str = "plain",
) -> Predictions:
    """Answer every question of `question_rows` and score every reference after the same prompt.

    The same rows in every process.

    `questions` are the prompts' questions, one per row (`fit_questions`). Finished batches are kept in .part files in
    `folder` under `key` until `delete_all_partial_results`. `decoder` is plain or static (`choose_decoder`).
    """
    answers_part, references_part = _parts(folder)
    answers = answer_questions(
        model, tokenizer, questions, settings, batch_size=batch_size, part=answers_part, key=key, decoder=decoder
    )
    triples = [
        (question, text, given)
        for row, (question, given) in zip(rows, questions, strict=True)
        for text in row["references"]
    ]

    def score(number: int, batch: list[tuple[str, str, Context]]) -> list[Any]:
        return reference_bits(model, tokenizer, batch, quiet=True)

    scored = in_batches(
        triples,
        [len(question) + len(text) + len(context_text(given)) for question, text, given in triples],
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


def delete_all_partial_results(folder: Path) -> None:
    """Remove the .part files once the results are written; every process calls it."""
    wait_for_all()
    for part in _parts(folder):
        delete_partial_results(part)


def _parts(folder: Path) -> tuple[Path, Path]:
    return folder / "answers", folder / "references"
