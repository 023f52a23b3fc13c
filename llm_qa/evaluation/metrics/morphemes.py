"""ROUGE and repetition over Kiwi's morphemes, as a Korean word between spaces consists of several.

`rouge_score` is not used: its tokenizer keeps `[a-z0-9]` only, so that identical Korean strings score 0.0
(huggingface/evaluate#256). The definitions are ROUGE's: F1 of shared n-grams, and of the longest common subsequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llm_qa.data.morphemes import morphemes

REPEATED = 4  # length of a repeated n-gram in morphemes


def tokenizer_signature() -> str:
    """Name and version of the morpheme analyser."""
    from importlib.metadata import version

    return f"kiwipiepy {version('kiwipiepy')}, model {version('kiwipiepy_model')}, lower case, no punctuation"


def rouge_n(prediction: str, references: Sequence[str], n: int) -> float:
    """ROUGE-N, 0 to 1: F1 of shared morpheme n-grams (as bags), the best reference. Source: Lin 2004."""
    answer = _ngrams(morphemes(prediction), n)
    wanted = [_ngrams(morphemes(reference), n) for reference in references]
    return max((_f1((answer & grams).total(), answer.total(), grams.total()) for grams in wanted), default=0.0)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L, 0 to 1: F1 of the longest common subsequence of morphemes, the best reference. Source: Lin 2004."""
    answer = morphemes(prediction)
    wanted = [morphemes(reference) for reference in references]
    return max((_f1(common_length(answer, parts), len(answer), len(parts)) for parts in wanted), default=0.0)


def repetition(text: str) -> float:
    """Share of morpheme 4-grams that occur earlier in the same text; 0 for a text too short to have any.

    Source: seq-rep-4 of Welleck et al. 2020, arXiv:1908.04319, over morphemes, so that it does not depend on a model's
    tokenizer.
    """
    grams = _ngrams(morphemes(text), REPEATED)
    return 1 - len(grams) / grams.total() if grams else 0.0


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a table row as the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, token in enumerate(other):
        places[token] = places.get(token, 0) | 1 << i
    everything = row = (1 << len(other)) - 1
    for token in one:
        matched = row & places.get(token, 0)
        row = (row + matched | row - matched) & everything
    return len(other) - row.bit_count()


def _ngrams(tokens: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def _f1(same: int, answered: int, wanted: int) -> float:
    if same == 0:
        return 0.0
    precision, recall = same / answered, same / wanted
    return 2 * precision * recall / (precision + recall)
