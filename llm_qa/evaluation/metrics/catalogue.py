"""Every measure of the report: name, direction, how its number is printed. The order is the report's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from llm_qa.evaluation.metrics.measures import chrf_signature
from llm_qa.evaluation.metrics.morphemes import tokenizer_signature
from llm_qa.language import later, tr

UNKNOWN = "–"
MINUS = "−"


@dataclass(frozen=True)
class Measure:
    """A ratio of two sums over records; `better` is None where neither direction is better."""

    key: str
    english: str  # the title
    better: str | None  # "higher", "lower" or None
    digits: int
    meaning: str
    percent: bool = False

    @property
    def title(self) -> str:
        """Its name in the chosen language."""
        return tr(self.english)

    @property
    def arrow(self) -> str:
        """An arrow for the better direction, shown beside the title."""
        return {"higher": "↑", "lower": "↓", None: ""}[self.better]

    def format(self, value: float | None) -> str:
        """0.1234 -> '0.123' (or '12.3%'); unknown or not finite -> '–'."""
        if not is_number(value):
            return UNKNOWN
        scaled = round(100 * value if self.percent else value, self.digits) + 0.0  # + 0.0: no negative zero
        return f"{scaled:.{self.digits}f}".replace("-", MINUS) + ("%" if self.percent else "")

    def format_difference(self, value: float | None) -> str:
        """+0.012, −0.3, +12.0 pp (percentage points)."""
        if not is_number(value):
            return UNKNOWN
        scaled = round(100 * value if self.percent else value, self.digits) + 0.0
        sign = "+" if scaled > 0 else MINUS if scaled < 0 else ""
        return f"{sign}{abs(scaled):.{self.digits}f}" + (" pp" if self.percent else "")


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


CHARACTER_F1 = "character_f1"
BITS_PER_CHARACTER = "bits_per_character"
EMBEDDING_COSINE = "embedding_cosine"

MEASURES = {
    measure.key: measure
    for measure in (
        Measure(
            CHARACTER_F1,
            later("Character F1"),
            "higher",
            3,
            later(
                "overlap of the characters of answer and reference, 0 to 1, by KorQuAD 1.0's official definition; the "
                "best over the references, then the mean over questions"
            ),
        ),
        Measure(
            "exact_match",
            later("Exact match"),
            "higher",
            3,
            later(
                "share of answers equal to a reference after KorQuAD 1.0's normalisation; near 0 for long free answers"
            ),
        ),
        Measure(
            "chrf",
            "chrF++",
            "higher",
            1,
            later(
                "character n-grams to 6 and word bigrams, 0 to 100, the best over the references, mean of sentence "
                "scores"
            ),
        ),
        Measure(
            "rouge1",
            "ROUGE-1",
            "higher",
            3,
            later(
                "F1 of the morphemes of answer and reference, 0 to 1, the best over the references, mean over questions"
            ),
        ),
        Measure("rouge2", "ROUGE-2", "higher", 3, later("the same of pairs of neighbouring morphemes")),
        Measure("rougeL", "ROUGE-L", "higher", 3, later("the same of the longest common subsequence of morphemes")),
        Measure(
            BITS_PER_CHARACTER,
            later("Bits per character"),
            "lower",
            3,
            later(
                "negative log-likelihood of the reference answers: the sum of −log2 p over the sum of characters, end "
                "token not counted; comparable between tokenizers"
            ),
        ),
        Measure(
            EMBEDDING_COSINE,
            later("Embedding cosine"),
            "higher",
            3,
            later(
                "cosine of the sentence embeddings of answer and reference, the mean over the references, then over "
                "questions; the competition's score where the embedder is distiluse-base-multilingual-cased-v1"
            ),
        ),
        Measure(
            "stopped_share",
            later("Stopped by itself"),
            "higher",
            1,
            later("share of answers that ended by the end token; the others ran out of tokens"),
            percent=True,
        ),
        Measure(
            "length_ratio",
            later("Length ratio"),
            None,
            2,
            later(
                "characters of the answers over characters of the references (the mean of a question's references); 1 "
                "is as long"
            ),
        ),
        Measure(
            "repetition",
            later("Repetition"),
            "lower",
            1,
            later("share of an answer's morpheme 4-grams that occur earlier in it, mean over questions (seq-rep-4)"),
            percent=True,
        ),
        Measure(
            "empty_share",
            later("Empty answers"),
            "lower",
            1,
            later("share of answers with nothing but white space"),
            percent=True,
        ),
    )
}
HEADLINE = (CHARACTER_F1, "chrf", "rougeL", BITS_PER_CHARACTER)  # what is plotted


def definitions() -> dict[str, str]:
    """Key -> exact definition, with the library's signature where there is one; for scores.json."""
    meanings = {key: measure.meaning for key, measure in MEASURES.items()}
    meanings["chrf"] += f" (sacrebleu {chrf_signature()})"
    for key in ("rouge1", "rouge2", "rougeL", "repetition"):
        meanings[key] += f" (morphemes: {tokenizer_signature()})"
    return meanings
