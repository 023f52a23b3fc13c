"""How wide a text is on a screen, on which a Hangul syllable takes two columns, and how it is made to fit."""

from __future__ import annotations

import shutil
import unicodedata


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal: a Hangul syllable takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def shortened(text: str, columns: int | None = None) -> str:
    """`text` on one line of at most so many columns, by default the terminal's (80 without one), cut with '…'."""
    columns = columns or shutil.get_terminal_size().columns
    text = " ".join(text.split())
    if display_width(text) <= columns:
        return text
    while text and display_width(text) > columns - 1:
        text = text[:-1]
    return f"{text.rstrip()}…"


def wrapped(text: str, columns: int) -> str:
    """The text with every line of more than `columns` broken between words, and what follows indented by two more.

    A word that is longer stays whole.
    """
    lines = []
    for line in text.split("\n"):
        if display_width(line) <= columns:
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        first, *words = line.split()
        lines.append(indent + first)
        for word in words:
            longer = f"{lines[-1]} {word}"
            if display_width(longer) <= columns:
                lines[-1] = longer
            else:
                lines.append(f"{indent}  {word}")
    return "\n".join(lines)
