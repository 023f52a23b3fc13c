"""Runs of polyglot-ko-12.8b that were measured: what the formulas of footprint.py and speed.py are compared with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A run on one host: its recipe, tokens of a GPU's pass, layers recomputed, and what was seen.

    `kind` is a key of speed.REACHED, `engine` of speed.GROWTH or "one". Memory is what each GPU had allocated at
    most, in GiB; None where it was not measured.
    """

    recipe: str
    kind: str
    tokens: int
    recomputed: int
    engine: str
    cards: int
    gib: float | None
    tokens_per_second: float
    card: str
    source: str
    inputs_on_host: bool = False


FAST = "models/fast, 2026-11-26"
SCALING = "accelerate_configs, 2026-11-26"
MEASURED = (
    Measured("qlora_12.8b", "fp8", 8192, 0, "one", 1, 65.6, 17_652, "H100", FAST),
    Measured("qlora_12.8b", "fp8", 2048, 0, "one", 1, 39.2, 15_951, "H100", FAST),
    Measured("qlora_12.8b", "fp16", 8192, 0, "one", 1, 65.5, 10_482, "H100", FAST),
    Measured("qlora_12.8b", "fp8", 8192, 40, "one", 1, 11.8, 12_934, "H100", FAST),
    Measured("qlora_12.8b", "fp8", 8192, 29, "one", 1, 19.7, 13_916, "H100", FAST),
    Measured("qlora_12.8b", "fp8", 8192, 38, "one", 1, 12.6, 13_207, "H100", FAST),
    Measured("qlora_12.8b", "fp8", 8192, 0, "ddp", 2, 65.7, 34_176, "H100", SCALING),
    Measured("qlora_12.8b", "fp8", 8192, 0, "ddp", 4, 65.7, 63_038, "H100", SCALING),
    Measured("qlora_12.8b", "fp8", 8192, 0, "zero2", 2, 66.0, 31_278, "H100", SCALING),
    Measured("qlora_12.8b", "fp8", 8192, 0, "zero2", 4, 65.9, 56_327, "H100", SCALING),
    Measured("qlora_12.8b", "fp16", 8192, 40, "zero3", 2, 10.4, 13_997, "H200", SCALING),
    Measured("lora_12.8b", "fp16", 8192, 40, "one", 1, 29.2, 8_517, "H200", SCALING),
    Measured("lora_12.8b", "fp16", 8192, 40, "zero3", 2, None, 13_200, "H100", SCALING),
    Measured("lora_12.8b", "fp16", 8192, 40, "zero3", 4, None, 23_360, "H100", SCALING),
    Measured("full_12.8b", "all weights", 2048, 40, "one", 1, 121.6, 5_075, "H200", SCALING, True),
    Measured("full_12.8b_zero3", "all weights", 8192, 40, "zero3, all weights", 2, 67.4, 8_561, "H100", SCALING),
    Measured("full_12.8b_zero3", "all weights", 8192, 40, "zero3, all weights", 4, 37.3, 17_020, "H100", SCALING),
)
