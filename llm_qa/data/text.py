"""Text normalisation, the original notebooks' cleaning, stopwords."""

from __future__ import annotations

import unicodedata


def normalize(text: str) -> str:
    """NFC, white space collapsed to single spaces, ends stripped: all that is done by default."""
    return " ".join(unicodedata.normalize("NFC", text).split())
