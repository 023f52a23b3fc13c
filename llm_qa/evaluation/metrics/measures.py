"""The measures as plain functions of strings and numbers; a question's score is the best over its references.

`catalogue.py` has their definitions, directions and formats; `morphemes.py` has the measures over morphemes.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

# KorQuAD 1.0, evaluate-v1.0.py replaces these by a space. Curly double quotes and 「」 are not in its list.
_SPACED = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_DROPPED = str.maketrans(dict.fromkeys(string.punctuation))


def normalize_korquad(text: str) -> str:
    """A string normalised as in KorQuAD: brackets and quotes to space, lower case, no ASCII punctuation, single spaces.

    Source: evaluate-v1.0.py of https://korquad.github.io/KorQuad%201.0/. Note that "1.5m" and "15m" become equal.
    """
    return " ".join(text.translate(_SPACED).lower().translate(_DROPPED).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals a normalised reference, else 0.0 (KorQuAD's EM / 100)."""
    answer = normalize_korquad(prediction)
    return float(any(answer == normalize_korquad(reference) for reference in references))


def character_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 over the characters of the normalised strings, spaces not counted, best reference (KorQuAD's F1 / 100).

    Characters are compared as bags, so order does not count. Two strings that are both empty after normalisation score
    0, as in the official script.
    """
    return _best(_character_f1, prediction, references)


def _character_f1(prediction: str, reference: str) -> float:
    answer = Counter(normalize_korquad(prediction).replace(" ", ""))
    wanted = Counter(normalize_korquad(reference).replace(" ", ""))
    same = (answer & wanted).total()
    if same == 0:
        return 0.0
    precision = 1.0 * same / answer.total()  # the official script's operations in its order: equal to the last digit
    recall = 1.0 * same / wanted.total()
    return (2 * precision * recall) / (precision + recall)


@lru_cache(maxsize=1)
def _chrf_plus_plus():
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def chrf(prediction: str, references: Sequence[str]) -> float:
    """chrF++ of one answer, 0 to 100: sacrebleu's sentence score with word bigrams, the best reference.

    Source: Popović 2017 by sacrebleu's defaults (character n-grams to 6, beta 2, white space not counted).
    """
    return _chrf_plus_plus().sentence_score(prediction, list(references)).score if references else 0.0


def chrf_signature() -> str:
    """sacrebleu's signature of `chrf`; the number of references varies by question."""
    import sacrebleu

    return f"chrF2++ nrefs:var|case:mixed|eff:yes|nc:6|nw:2|space:no|version:{sacrebleu.__version__}, mean of sentences"


def lengths(prediction: str, references: Sequence[str]) -> tuple[int, float]:
    """Characters of one answer, and of its references on average: the terms of `length_ratio`."""
    return len(prediction), sum(map(len, references)) / len(references)


def length_ratio(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Characters of all answers over those of all references (averaged per question); 1 means equally long."""
    answered, wanted = zip(*map(lengths, predictions, references), strict=True)
    return sum(answered) / sum(wanted)


def is_empty(prediction: str) -> float:
    """1.0 for an answer with nothing but white space, else 0.0."""
    return float(not prediction.strip())


def bits_per_character(bits: Iterable[float | None], characters: Iterable[int]) -> float:
    """Sum of -log2 p(reference | prompt) over the sum of characters; comparable between tokenizers; lower is better.

    A reference whose bits are None (longer than the model's context) or not finite (a broken model) is left out of
    both sums. NaN when nothing is left.
    """
    total_bits, total_characters = known_bits(bits, characters)
    return total_bits / total_characters if total_characters else float("nan")


def known_bits(bits: Iterable[float | None], characters: Iterable[int]) -> tuple[float, int]:
    """(sum of bits, sum of characters) over the references whose bits are known and finite."""
    known = [(b, c) for b, c in zip(bits, characters, strict=True) if b is not None and math.isfinite(b)]
    return sum(b for b, _ in known), sum(c for _, c in known)


def _best(measure: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    return max((measure(prediction, reference) for reference in references), default=0.0)
