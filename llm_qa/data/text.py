"""Text: normalisation (always), and the cleanings that a user may ask for.

By default nothing but Unicode NFC and white space is touched. The original notebooks' cleaning is here to be compared
with, not to be recommended: it turned "하중이 걸리지 않기 때문에" into "하중이 걸리지" and "1.5m" into "15m".
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from llm_qa.console import UserError

MORPHEMES = "morphemes"
# Kiwi's tags of words without content of their own: particles (J*), interjections, conjunctive adverbs.
FUNCTION_TAGS = ("J", "IC", "MAJ")
NEGATIONS = ("안", "못", "않", "아니", "없", "말")


def normalize(text: str) -> str:
    """NFC, white space collapsed to single spaces, ends stripped: all that is done by default."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def comparable(text: str) -> str:
    """A text reduced for "are these the same?": NFKC, casefolded letters and digits; the text itself if none."""
    kept = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
    return kept or normalize(text)


def original_cleaning(text: str) -> str:
    """The original notebooks' cleaning, exactly: only Hangul syllables, ASCII letters, digits and spaces are kept."""
    return re.sub(r"\s+", " ", re.sub(r"[^가-힣A-Za-z0-9 ]", "", text)).strip()


def read_stopwords(path: str | Path) -> frozenset[str]:
    """A stopword file as the original notebooks read it: newlines become spaces, split at each space.

    An entry of several words therefore counts as each of its words. Raises UserError for an unreadable file.
    """
    try:
        return frozenset(Path(path).read_text(encoding="utf-8-sig").replace("\n", " ").split(" "))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--stopwords {path} cannot be read as UTF-8 text: {error}.") from None


def remove_stopwords(text: str, stopwords: frozenset[str]) -> str:
    """Drop white-space tokens that are stopwords, as the original notebooks did."""
    return " ".join(word for word in text.split() if word not in stopwords)


@lru_cache(maxsize=1)
def _kiwi():
    try:
        from kiwipiepy import Kiwi
    except ImportError:
        raise UserError("--stopwords morphemes needs kiwipiepy: pip install kiwipiepy.") from None
    return Kiwi()


def remove_function_words(text: str) -> str:
    """Drop particles, interjections and conjunctive adverbs by Kiwi's analysis; every other character stays as it is.

    Endings stay on their stems and negations always stay, so that a sentence keeps its meaning.
    """
    kept, end = [], 0
    for token in _kiwi().tokenize(text):
        if token.start < end:  # morphemes that share a syllable: it is already decided
            continue
        if token.tag.startswith(FUNCTION_TAGS) and token.form not in NEGATIONS:
            kept.append(text[end : token.start])
            end = token.start + token.len
        else:
            kept.append(text[end : token.start + token.len])
            end = token.start + token.len
    return normalize("".join([*kept, text[end:]]))


@dataclass(frozen=True)
class Cleaning:
    """What is done to the texts that are trained on, beyond normalisation."""

    cleaning: str = "none"  # none | original
    stopwords: str | None = None  # a file, or "morphemes"
    stopwords_scope: str = "all"  # none | questions | all
    words: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def from_options(
        cls, cleaning: str = "none", stopwords: str | None = None, stopwords_scope: str = "all"
    ) -> Cleaning:
        """Read the stopword file, if there is one."""
        words = read_stopwords(stopwords) if stopwords and stopwords != MORPHEMES else frozenset()
        return cls(cleaning, stopwords, stopwords_scope, words)

    def _apply(self, text: str, drop_words: bool) -> str:
        if self.cleaning == "original":
            text = original_cleaning(text)
        if drop_words and self.stopwords == MORPHEMES:
            return remove_function_words(text)
        return remove_stopwords(text, self.words) if drop_words and self.words else text

    def question(self, text: str) -> str:
        """A question as it is trained on."""
        return self._apply(text, self.stopwords_scope in ("questions", "all"))

    def answer(self, text: str) -> str:
        """An answer as it is trained on."""
        return self._apply(text, self.stopwords_scope == "all")
