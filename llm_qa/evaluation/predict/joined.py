"""Held-out questions two at once: what is asked, and how much of both answers a model covers."""

from __future__ import annotations

from typing import Any

from llm_qa.console import UserError
from llm_qa.data.groups import connected
from llm_qa.data.joining import join_answers, joined_records
from llm_qa.data.records import QARecord
from llm_qa.evaluation.metrics.measures import character_f1
from llm_qa.evaluation.predict.predictions import question_rows


def joined_questions(
    records: list[QARecord], groups: dict[str, str], seed: int
) -> tuple[list[QARecord], list[dict[str, Any]]]:
    """(records that ask two questions at once, their `question_rows`) of held-out records, drawn with `seed`.

    A row's `joined` names the two rows of single questions, (record id, question index), that it was made of. Joined
    records with a common group of `groups` are one group. UserError where no two records can be joined.
    """
    pairs = joined_records(records, seed)
    if not pairs:
        raise UserError(
            f"--joined asks the questions of two records at once, and of {len(records)} there are no two without a "
            "passage that share no text: leave it out, or evaluate a larger --split."
        )
    both = [record for _, _, record in pairs]
    names = [f"{groups[first.id]}+{groups[second.id]}" for first, second, _ in pairs]
    homes = connected([(groups[first.id], groups[second.id]) for first, second, _ in pairs])
    parts = {
        (record.id, index): [[one.id, index % len(one.questions)] for one in (first, second)]
        for first, second, record in pairs
        for index in range(len(record.questions))
    }
    rows = question_rows(both, {record.id: names[home] for record, home in zip(both, homes, strict=True)})
    return both, [{**row, "joined": parts[row["id"], row["question_index"]]} for row in rows]


def coverage(joined: list[dict[str, Any]], single: list[dict[str, Any]]) -> dict[str, Any]:
    """How much of both answers is covered, from answered rows of joined and of single questions by the same model.

    `character_f1` is against both answers together, `single` the same model's on the single questions that they were
    made of, and `share` the first over the second. `laid_together` is what the model's two single answers score against
    both references when they are written one after the other: what it would reach if it answered two questions at once
    as well as one by one.
    """
    answered = {(row["id"], row["question_index"]): row for row in single}
    parts = [[answered[name, index] for name, index in row["joined"]] for row in joined]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    both = mean([character_f1(row["prediction"], row["references"]) for row in joined])
    alone = mean([character_f1(part["prediction"], part["references"]) for two in parts for part in two])
    together = mean(
        [
            character_f1(join_answers(*(part["prediction"] for part in two)), row["references"])
            for row, two in zip(joined, parts, strict=True)
        ]
    )
    found = {"questions": len(joined), "character_f1": both, "single": alone, "laid_together": together}
    return {key: round(value, 6) for key, value in found.items()} | {"share": round(both / alone, 6) if alone else None}


def coverage_line(found: dict[str, Any]) -> str:
    """`coverage` as a sentence."""
    share = f"{found['share']:.0%} of the" if found["share"] is not None else "against the"
    return (
        f"two questions at once: character F1 {found['character_f1']:.3f} against both answers, {share} single "
        f"questions' {found['single']:.3f} ({found['questions']:,} questions; the two single answers one after the "
        f"other: {found['laid_together']:.3f})"
    )
