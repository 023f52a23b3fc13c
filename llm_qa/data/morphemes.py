"""Korean texts as Kiwi's morphemes, as a word between spaces consists of several."""

from __future__ import annotations

from functools import lru_cache

# Kiwi's tags of punctuation and symbols; Latin (SL), Hanja (SH) and numbers (SN) are words.
SYMBOLS = frozenset({"SF", "SP", "SS", "SSO", "SSC", "SE", "SO", "SW", "SB"})
GRAMMAR = ("J", "E", "VC", "XS")  # beginnings of the tags of particles, endings, copulas and suffixes


@lru_cache(maxsize=1)
def kiwi():
    """The analyser, made once: it takes a second."""
    from kiwipiepy import Kiwi

    return Kiwi()


@lru_cache(maxsize=1 << 17)
def morphemes(text: str) -> tuple[str, ...]:
    """Lower-cased morphemes in order, without punctuation; particles and endings are morphemes of their own."""
    return tuple(token.form for token in _tokens(text) if token.tag not in SYMBOLS)


def content_morphemes(text: str) -> list[str]:
    """The same without what is grammar alone (particles, endings), for looking texts up by what they are about."""
    return [t.form for t in _tokens(text) if t.tag not in SYMBOLS and not t.tag.startswith(GRAMMAR)]


def _tokens(text: str) -> list:
    text = text.lower().encode("utf-8", "replace").decode()  # replaces a lone surrogate, which a tokenizer may produce
    return kiwi().tokenize(text)
