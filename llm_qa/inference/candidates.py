"""The best of several drawn answers: the one that is closest to the others on average.

Minimum Bayes risk decoding (Kumar & Byrne 2004; for language models Bertsch et al. 2023, arXiv:2310.01387): of answers
drawn from a model, the one with the highest expected similarity to what the model might have said. Similarity is
sacrebleu's sentence chrF++, or the cosine of sentence embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from llm_qa.models.embedder import embed, load_embedder


@lru_cache(maxsize=1)
def _chrf_plus_plus():
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def closest_to_all(texts: Sequence[str], embedder: str = "") -> int:
    """The index of the text that is most similar to all others on average; the first of equals. At least one text.

    By chrF++ against each, or by the cosine to each of the embeddings of `embedder` (a name for `load_embedder`).
    """
    sums = _embedding_sums(texts, embedder) if embedder else _chrf_sums(texts)
    return max(range(len(texts)), key=lambda i: sums[i] if texts[i] else -len(texts))


def _embedding_sums(texts: Sequence[str], embedder: str) -> list[float]:
    vectors = embed(load_embedder(embedder), texts)
    # Rounded, so that equal texts are equal whatever place of a product they have.
    return np.round((vectors @ vectors.T).sum(axis=1) - 1, 4).tolist()


def _chrf_sums(texts: Sequence[str]) -> list[float]:
    scores: dict[tuple[str, str], float] = {}

    def similarity(text: str, other: str) -> float:
        if (text, other) not in scores:
            scores[text, other] = _chrf_plus_plus().sentence_score(text, [other]).score
        return scores[text, other]

    return [sum(similarity(text, other) for j, other in enumerate(texts) if j != i) for i, text in enumerate(texts)]
