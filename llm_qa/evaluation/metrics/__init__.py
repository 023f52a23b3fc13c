"""Measures of Korean answers: plain functions, also as local `evaluate` modules that load without network.

Two measures of the report are not modules: whether an answer stopped by itself is known only from its generation, and
the embedding cosine needs a model.
"""

from __future__ import annotations

from pathlib import Path

MODULES = ("korquad", "chrf", "rouge", "bits_per_character", "form")


def load_module(name: str):
    """`evaluate.load` of one of MODULES, from this folder; other names are a ValueError."""
    if name not in MODULES:
        raise ValueError(f"There is no local measure {name!r}: choose one of {', '.join(MODULES)}.")
    import evaluate

    return evaluate.load(str(Path(__file__).parent / name))
