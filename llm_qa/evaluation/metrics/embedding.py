"""Sentence embeddings of answers: the competition's score and its submission. sentence-transformers is optional."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.evaluation.metrics.catalogue import EMBEDDING_COSINE

COMPETITION_EMBEDDER = "sentence-transformers/distiluse-base-multilingual-cased-v1"
COMPETITION_DIMENSIONS = 512


def load_embedder(name: str):
    """A SentenceTransformer of a hub id or a local folder: safetensors only, no code from it runs.

    Raises UserError when the package is not installed, or the model is missing or not safe to load.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            "Sentence embeddings need sentence-transformers, which is optional: pip install -e '.[submission]'."
        ) from None
    from llm_qa.models.safety import PICKLES, refuse_unsafe_weights

    if Path(name).is_dir():
        for path in Path(name).rglob("*"):
            if path.suffix in PICKLES:
                refuse_unsafe_weights(path.parent)
    try:
        return SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except Exception as error:  # it raises errors of transformers and huggingface_hub too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise UserError(f"--embedder {name} cannot be loaded: {reason}.") from error


def embed(embedder, texts: list[str]) -> np.ndarray:
    """(texts, dimensions) float32: unit vectors; equal texts are embedded once."""
    different = list(dict.fromkeys(texts))
    vectors = embedder.encode(
        different, batch_size=64, convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False
    ).astype(np.float32)
    place = {text: i for i, text in enumerate(different)}
    return vectors[[place[text] for text in texts]]


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
