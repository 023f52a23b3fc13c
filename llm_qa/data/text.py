"""Normalisation of texts, and the cleanings that a user may choose.

By default only Unicode form (NFC) and white space are changed, and line breaks inside answers and contexts stay. The
original notebooks' cleaning is here for comparison and not recommended: it turned
"하중이 걸리지 않기 때문에" into "하중이 걸리지" and "1.5m" into "15m".
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from llm_qa.console import UserError
from llm_qa.data.encoding import read_bytes
from llm_qa.data.morphemes import kiwi

MORPHEMES = "morphemes"
# Kiwi's tags of function words: particles (J*), interjections, conjunctive adverbs.
FUNCTION_TAGS = ("J", "IC", "MAJ")
NEGATIONS = ("안", "못", "않", "아니", "없", "말")


def normalize(text: str) -> str:
    """NFC, white space collapsed to single spaces, ends stripped; for texts of one line."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize_lines(text: str) -> str:
    """`normalize` of every line of an answer or a context: line breaks, blank lines and indentation stay.

    Every kind of line break becomes "\n"; white space at the ends of a line and blank lines at the ends of the text go.
    """
    lines = []
    for line in unicodedata.normalize("NFC", text).splitlines():
        indentation = line[: len(line) - len(line.lstrip(" \t"))]
        words = normalize(line)
        lines.append(indentation + words if words else "")
    return "\n".join(lines).strip()


# What --line-breaks does to answers and contexts; a question is always one line.
LINE_BREAKS = {"keep": normalize_lines, "join": normalize}


def leakage_key(text: str) -> str:
    """A text reduced to find leakage between splits: NFKC, casefolded letters and digits; the text itself if none.

    "1:3" and "13" get the same key: equal keys must stay in one split, but the texts need not be equal.
    """
    kept = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
    return kept or normalize(text)


@lru_cache(maxsize=1)
def _invalid_patterns() -> tuple[re.Pattern, re.Pattern]:
    """Patterns of invalid text: (control characters except white space, lone surrogates, U+FFFD; 31 combining marks).

    Normalising a run of combining marks takes time quadratic in its length; UAX #15 allows 30 ("stream-safe").
    """
    marks = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(c))
    return re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd]"), re.compile(f"[{marks}]{{31}}")


def invalid_reason(text: str) -> str:
    """Why a text cannot be used, "" when it can; to be called before it is normalised."""
    if text.isascii() and text.isprintable():
        return ""
    broken, marks = _invalid_patterns()
    if found := broken.search(text):
        return f"control character or broken text (U+{ord(found[0]):04X})"
    return "more than 30 combining marks in a row" if marks.search(text) else ""


def visible(text: str) -> str:
    """Text that is safe to print and to store: broken characters as escapes."""
    return _invalid_patterns()[0].sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def original_cleaning(text: str) -> str:
    """The original notebooks' cleaning, exactly: only Hangul syllables, ASCII letters, digits and spaces are kept."""
    return re.sub(r"\s+", " ", re.sub(r"[^가-힣A-Za-z0-9 ]", "", text)).strip()


def read_stopwords(path: str | Path) -> frozenset[str]:
    """A stopword file as the original notebooks read it: newlines become spaces, split at each space.

    An entry of several words therefore counts as each of its words. Raises UserError for an unreadable file.
    """
    try:
        text = read_bytes(Path(path)).decode("utf-8-sig")
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"--stopwords {path} cannot be read as UTF-8 text: {str(error).rstrip('.')}.") from None
    return frozenset(re.sub("\r\n?|\n", " ", text).split(" "))


def remove_stopwords(text: str, stopwords: frozenset[str]) -> str:
    """Drop white-space tokens that are stopwords, as the original notebooks did, line by line."""
    lines = (" ".join(word for word in line.split() if word not in stopwords) for line in text.splitlines())
    return "\n".join(lines).strip()


def remove_function_words(text: str) -> str:
    """Drop particles, interjections and conjunctive adverbs by Kiwi's analysis; every other character stays as it is.

    Endings stay on their stems and negations always stay, so that a sentence keeps its meaning.
    """
    kept, end = [], 0
    for token in kiwi().tokenize(text):
        if token.start < end:  # a morpheme within a syllable that is already handled
            continue
        if token.tag.startswith(FUNCTION_TAGS) and token.form not in NEGATIONS:
            kept.append(text[end : token.start])
            end = token.start + token.len
        else:
            kept.append(text[end : token.start + token.len])
            end = token.start + token.len
    return normalize_lines("".join([*kept, text[end:]]))


@dataclass(frozen=True)
class Cleaning:
    """The cleaning of training texts, beyond normalisation."""

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
            text = original_cleaning(normalize(text))  # it expects one line: dropping a line break would join two words
        if drop_words and self.stopwords == MORPHEMES:
            return remove_function_words(text)
        return remove_stopwords(text, self.words) if drop_words and self.words else text

    def question(self, text: str) -> str:
        """The cleaned question."""
        return self._apply(text, self.stopwords_scope in ("questions", "all"))

    def answer(self, text: str) -> str:
        """The cleaned answer."""
        return self._apply(text, self.stopwords_scope == "all")
