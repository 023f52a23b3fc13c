"""Sentence embeddings of answers: the competition's score and its submission."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from llm_qa import files
from llm_qa.evaluation.metrics.catalogue import EMBEDDING_COSINE
from llm_qa.models.embedder import embed

COMPETITION_EMBEDDER = "sentence-transformers/distiluse-base-multilingual-cased-v1"
COMPETITION_DIMENSIONS = 512


def with_cosines(rows: list[dict[str, Any]], embedder) -> list[dict[str, Any]]:
    """The rows with `embedding_cosine`: answer against reference, the mean over the references, -1 to 1.

    Without an embedder (None) the rows are unchanged. The mean and not the maximum, because the competition's hidden
    answer is any one of such references. An empty answer is embedded like any text.
    """
    if embedder is None:
        return rows
    texts = [row["prediction"] for row in rows] + [text for row in rows for text in row["references"]]
    vectors = embed(embedder, texts)
    answers, references = vectors[: len(rows)], iter(vectors[len(rows) :])
    return [
        {**row, EMBEDDING_COSINE: float(np.mean([answer @ next(references) for _ in row["references"]]))}
        for row, answer in zip(rows, answers, strict=True)
    ]


def write_submission(path: str | Path, ids: list[str], vectors: np.ndarray) -> None:
    """Write id, vec_0, vec_1 ... as CSV, like the competition's sample_submission.csv; shortest exact floats."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", *(f"vec_{i}" for i in range(vectors.shape[1]))])
    for identity, vector in zip(ids, vectors, strict=True):
        writer.writerow([identity, *(np.format_float_positional(value, trim="0") for value in vector)])
    files.write_text(path, buffer.getvalue())
