"""The best of several drawn answers: the one that is closest to the others on average.

Minimum Bayes risk decoding (Kumar & Byrne 2004; for language models Bertsch et al. 2023, arXiv:2310.01387): of answers
drawn from a model, the one with the highest expected similarity to what the model might have said. Similarity is
sacrebleu's sentence chrF++.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=1)
def _chrf_plus_plus():
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def closest_to_all(texts: Sequence[str]) -> int:
    """The index of the text with the highest mean chrF++ against all others; the first of equals. At least one text."""
    scores: dict[tuple[str, str], float] = {}

    def similarity(text: str, other: str) -> float:
        if (text, other) not in scores:
            scores[text, other] = _chrf_plus_plus().sentence_score(text, [other]).score
        return scores[text, other]

    totals = [
        sum(similarity(text, other) for j, other in enumerate(texts) if j != i) if text else -1.0
        for i, text in enumerate(texts)
    ]
    return max(range(len(texts)), key=lambda i: totals[i])
