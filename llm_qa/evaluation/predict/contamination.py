"""How close test texts are to training texts, and what copying the nearest training answer would score.

The split keeps equal texts in one split, but nearly equal ones may be in several. Every test question and reference is
looked up among the training texts, and the score of copied answers is a row of the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from llm_qa.console import progress
from llm_qa.data.records import QARecord, passage_of
from llm_qa.data.text import leakage_key
from llm_qa.evaluation.metrics.measures import chrf
from llm_qa.evaluation.statistics.grouping import CLOSE, CLOSE_SIMILARITY, closeness

CANDIDATES = 20  # results of the character index, which chrF++ then ranks


def character_pairs(text: str) -> frozenset[str]:
    """Pairs of neighbouring characters of the text's `leakage_key`, including markers at both ends."""
    marked = f"\x02{leakage_key(text)}\x03"
    return frozenset(marked[i : i + 2] for i in range(len(marked) - 1))


class CharacterIndex:
    """An index of texts by character pairs. Similarity is Dice's: twice the shared pairs over all pairs, 0 to 1."""

    def __init__(self, texts: list[str]):
        pairs = [character_pairs(text) for text in texts]
        places: dict[str, list[int]] = defaultdict(list)
        for i, found in enumerate(pairs):
            for pair in found:
                places[pair].append(i)
        self._sizes = np.array([len(found) for found in pairs], dtype=np.float64)
        self._places = {pair: np.array(found) for pair, found in places.items()}

    def similarities(self, text: str) -> np.ndarray:
        """(texts,) float64: how similar each text is to `text`."""
        wanted = character_pairs(text)
        found = [self._places[pair] for pair in wanted if pair in self._places]
        shared = np.bincount(np.concatenate(found), minlength=len(self._sizes)) if found else np.zeros(1)
        return 2 * shared / (self._sizes + len(wanted))

    def nearest(self, text: str, count: int) -> list[int]:
        """Indices of the most similar texts, best first; ties in the order of the texts."""
        return np.argsort(-self.similarities(text), kind="stable")[:count].tolist()


def with_closest(rows: list[dict[str, Any]], training: list[QARecord]) -> list[dict[str, Any]]:
    """The rows with `closest_training`: similarity to the nearest training question and answer.

    {"question", "answer", "trained_on"}: that of the answer is the highest over the references; 1 means equal except
    for case, spaces and punctuation; `trained_on` says whether this question about the same passage was trained on,
    under whatever system message.
    """
    known = {_what_is_asked(text, record.passage) for record in training for text in record.questions}
    questions = CharacterIndex([text for record in training for text in record.questions])
    answers = CharacterIndex([text for record in training for text in record.answers])
    marked = []
    for row in progress(rows, what="looking for training texts", unit="questions"):
        question = float(questions.similarities(row["question"]).max())
        answer = max(float(answers.similarities(text).max()) for text in row["references"])
        closest = {"question": round(question, 4), "answer": round(answer, 4)}
        passage = passage_of(row.get("context", ""), row.get("system", ""))
        closest["trained_on"] = _what_is_asked(row["question"], passage) in known
        marked.append({**row, "closest_training": closest})
    return marked


def _what_is_asked(question: str, passage: str) -> tuple[str, str]:
    return leakage_key(question), leakage_key(passage)


class TrainingQuestions:
    """The questions of training records, to be looked up by how similar another question is."""

    def __init__(self, training: list[QARecord]):
        self.known = [(question, record) for record in training for question in record.questions]
        self.index = CharacterIndex([question for question, _ in self.known])

    def nearest(self, question: str, count: int) -> list[tuple[str, str]]:
        """The most similar question by chrF++ and the first answer of the `count` nearest records, best first.

        chrF++ ranks only the CANDIDATES for each that are nearest by character pairs; a slow search of all would hardly
        ever differ.
        """
        found = [self.known[i] for i in self.index.nearest(question, CANDIDATES * count)]
        found.sort(key=lambda pair: chrf(question, [pair[0]]), reverse=True)
        best: dict[str, tuple[str, str]] = {}
        for text, record in found:
            best.setdefault(record.id, (text, record.answers[0]))
        return list(best.values())[:count]


def nearest_answers(questions: list[str], training: list[QARecord]) -> list[str]:
    """For each question the first answer of the training record with the most similar question."""
    known = TrainingQuestions(training)
    asked = progress(questions, what="nearest training answers", unit="questions")
    return [known.nearest(question, 1)[0][1] for question in asked]


def contamination(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Counts for scores.json: questions trained on, with a close question, a close answer, and records with either."""
    close = Counter(
        kind for row in rows for kind in ("question", "answer") if row["closest_training"][kind] >= CLOSE_SIMILARITY
    )
    return {
        "similarity_from": CLOSE_SIMILARITY,
        "trained_on_questions": sum(row["closest_training"]["trained_on"] for row in rows),
        "close_questions": close["question"],
        "close_answers": close["answer"],
        "close_records": len({row["id"] for row in rows if closeness(row) == CLOSE}),
    }


def nearest_rows(rows: list[dict[str, Any]], training: list[QARecord]) -> list[dict[str, Any]]:
    """Rows of predictions that copy the nearest training answer; they have no bits, as no model generated them."""
    copied = nearest_answers([row["question"] for row in rows], training)
    return [
        {
            **row,
            "prediction": text,
            "stopped": True,
            "generated_tokens": 0,
            "reference_bits": [None] * len(row["references"]),
        }
        for row, text in zip(rows, copied, strict=True)
    ]
