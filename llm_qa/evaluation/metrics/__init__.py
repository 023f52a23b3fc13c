"""Measures of Korean answers: plain functions, and the same as local `evaluate` modules that load without network."""

from __future__ import annotations

from pathlib import Path

MODULES = ("korquad", "chrf", "rouge", "bits_per_character")


def load_module(name: str):
    """`evaluate.load` of one of MODULES, from this folder; other names are a ValueError."""
    if name not in MODULES:
        raise ValueError(f"There is no local measure {name!r}: choose one of {', '.join(MODULES)}.")
    import evaluate

    return evaluate.load(str(Path(__file__).parent / name))
