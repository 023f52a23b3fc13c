"""The language of everything that people read, and the one way to say something in it.

    tr("{path} holds no question.", path=path)

gives the English sentence, or its Korean one from the tables of llm_qa/korean/*.json, whose keys are the English
sentences as they stand in the code. tests/test_language.py finds every sentence in the source and holds it against the
tables. Korean ones use no particle that depends on the value before it: "{path} 파일에서", or "을(를)".

What is written once for all languages (a title in a table of constants) is marked by `later("Title")` where it stands,
and said by `tr(title)` where it is shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

KOREAN, ENGLISH = "ko", "en"
LANGUAGES = (KOREAN, ENGLISH)
VARIABLE = "LLM_QA_LANG"  # the chosen language; a variable of the process, so that commands started by it follow
LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")  # in the order in which they count
TABLES = Path(__file__).parent / "korean"


def language() -> str:
    """KOREAN or ENGLISH: what --lang or LLM_QA_LANG says, else the locale's (Korean for ko*, English for any other)."""
    if (chosen := os.environ.get(VARIABLE)) in LANGUAGES:
        return chosen
    named = next(filter(None, map(os.environ.get, LOCALE)), "")
    return KOREAN if named.lower().startswith(KOREAN) else ENGLISH


def set_language(name: str) -> None:
    """Choose KOREAN or ENGLISH for this process and the ones that it starts."""
    os.environ[VARIABLE] = name


def choose_language(words: Iterable[str]) -> None:
    """Take the language from `--lang ko` among a command's words before they are parsed, for mistakes in the others."""
    words = list(words)
    for word, following in zip(words, [*words[1:], ""], strict=False):
        value = following if word == "--lang" else word.removeprefix("--lang=")
        if value in LANGUAGES and word.startswith("--lang"):
            set_language(value)


def tr(english: str, /, **values: object) -> str:
    """A sentence in the chosen language, with the values for its {placeholders} (str.format).

    A sentence without an entry stays English: what was translated already, or what a library says.
    """
    template = korean().get(english, english) if language() == KOREAN else english
    return template.format(**values) if values else template


def later(english: str) -> str:
    """Mark a constant for the tables; it is returned as it is, and `tr` translates it where it is shown."""
    return english


@cache
def korean() -> dict[str, str]:
    """English -> Korean of all tables, read when the first Korean sentence is said."""
    tables = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(TABLES.glob("*.json")))
    return {english: text for table in tables for english, text in table.items()}
