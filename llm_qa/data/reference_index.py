"""How near references are to a question: by BM25 over content morphemes, or by sentence embeddings.

An index is made of the texts of each reference and gives a question's score for every one of them, the higher the
nearer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from llm_qa.console import progress
from llm_qa.data.morphemes import content_morphemes

Texts = Sequence[Sequence[str]]  # of each reference: at least one
Embed = Callable[[list[str]], np.ndarray]  # texts -> (texts, dimensions) float32, of length one
SAME = 0.999  # cosine of a text with itself, embedded twice: rounding differs between devices


class ReferenceIndex(Protocol):
    """What finds references."""

    def scores(self, question: str) -> np.ndarray:
        """(references,) float32: how near each is."""
        ...


class MorphemeIndex:
    """BM25 (Lucene's variant, by bm25s) over the content morphemes of all texts of a reference."""

    def __init__(self, texts: Texts):
        # Where jax is installed (on Kaggle and Colab it is), bm25s starts it on import, and jax would reserve three
        # quarters of the GPU's memory: bm25s/selection.py, 0.3.16.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import bm25s

        words = [
            [form for text in of_one for form in content_morphemes(text)]
            for of_one in progress(texts, what="indexing references", unit="references")
        ]
        self.bm25, self.references = bm25s.BM25(), len(words)
        # A corpus without any word has no vocabulary; one that no question asks for keeps it from being empty.
        self.bm25.index([[*of_one, "\0"] for of_one in words], show_progress=False)
        self.words = set(self.bm25.vocab_dict)

    def scores(self, question: str) -> np.ndarray:
        """(references,) float32."""
        known = [word for word in content_morphemes(question) if word in self.words]
        return np.array(self.bm25.get_scores(known)) if known else np.zeros(self.references, np.float32)


class EmbeddingIndex:
    """Cosine of a question's embedding with that of a reference's nearest text.

    `vectors`, where given, are those that an earlier index of the same texts had: (texts, dimensions) float32.
    ValueError where they are not.
    """

    def __init__(self, texts: Texts, embed: Embed, vectors: np.ndarray | None = None):
        flat = [text for of_one in texts for text in of_one]
        self.starts = np.cumsum([0, *map(len, texts)])[:-1]
        self.embed, self.vectors = embed, embed(flat) if vectors is None else vectors
        if vectors is not None:
            _check_same_embedder(embed(flat[:1]), vectors, len(flat))
        self.places = {text: place for place, text in enumerate(flat)}

    def scores(self, question: str) -> np.ndarray:
        """(references,) float32, -1 to 1."""
        place = self.places.get(question)
        vector = self.embed([question])[0] if place is None else self.vectors[place]
        return np.maximum.reduceat(self.vectors @ vector, self.starts)


def _check_same_embedder(first: np.ndarray, vectors: np.ndarray, texts: int) -> None:
    """ValueError unless `vectors` are of as many texts, and their first one is what the embedder gives today."""
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != texts:
        raise ValueError(f"it holds {vectors.dtype} of the shape {vectors.shape}, not one float32 vector of each text")
    if vectors.shape[1:] != first.shape[1:] or float(first[0] @ vectors[0]) < SAME:
        raise ValueError("its vectors are of another embedder")
