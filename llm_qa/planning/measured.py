"""Measured runs of the polyglot-ko models, which the formulas of footprint.py and speed.py are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Measured:
    """A run on one host: its recipe, tokens of a GPU's pass, layers recomputed, and what was seen.

    `kind` is a key of speed.REACHED, `engine` of ways.STAGE, `offload` one of memory.OFFLOADS; `passes` are those of an
    update. Memory is what each GPU had allocated at most, in GiB; None where it was not measured. `flags` are those
    that the recipe was changed by.
    """

    recipe: str
    kind: str
    tokens: int
    recomputed: int
    engine: str
    gpus: int
    gib: float | None
    tokens_per_second: float
    gpu: str
    source: str
    inputs_on_host: bool = False
    size: str = "12.8b"
    flags: tuple[str, ...] = ()
    passes: int = 1
    offload: str = ""

    @property
    def model(self) -> str:
        """The model's name on the hub."""
        return f"EleutherAI/polyglot-ko-{self.size}"


def _one(
    size: str, recipe: str, kind: str, tokens: int, recomputed: int, gib: float, speed: float, *flags: str
) -> Measured:
    """A run on one H200, 5 updates after 3 (`scripts/bench.py`)."""
    return Measured(recipe, kind, tokens, recomputed, "one", 1, gib, speed, "H200", SIZES, size=size, flags=flags)


def _optimizer_offload(recipe: str, gpus: int, speed: float) -> Measured:
    """A run on H200s with its optimizer in the machine's memory."""
    run = Measured(recipe, "all weights", 8192, 40, "zero3", gpus, None, speed, "H200", SCALING)
    return replace(run, flags=("--optim", "adamw_torch"), offload="optimizer")


FAST = "models/fast, 2026-11-26"
SCALING = "accelerate_configs, 2026-11-26"
SIZES = "scripts/bench.py, torch 2.11, 2026-11-27"
IN_BF16, FP8_BASE = ("--compute-dtype", "bf16"), ("--base-precision", "fp8")
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
    Measured("lora_12.8b", "fp16", 8192, 40, "one", 1, 29.2, 8_517, "H200", SCALING, passes=2),
    Measured("lora_12.8b", "fp16", 8192, 40, "zero3", 2, None, 13_200, "H100", SCALING),
    Measured("lora_12.8b", "fp16", 8192, 40, "zero3", 4, None, 23_360, "H100", SCALING),
    Measured("full_12.8b", "all weights", 2048, 40, "one", 1, 121.6, 5_075, "H200", SCALING, True, passes=8),
    Measured("full_12.8b_zero3", "all weights", 8192, 40, "zero3", 2, 67.4, 8_561, "H100", SCALING),
    Measured("full_12.8b_zero3", "all weights", 8192, 40, "zero3", 4, 37.3, 17_020, "H100", SCALING),
    # Without its memory: bench.py builds the whole weights on each GPU, 24.4 GiB, more than training held then.
    _optimizer_offload("full_12.8b", 2, 1_464),
    _one("12.8b", "lora_12.8b", "fp8", 4096, 0, 65.4, 17_385),
    _one("5.8b", "qlora_12.8b", "fp8", 8192, 0, 33.8, 36_652),
    _one("5.8b", "qlora_12.8b", "fp8", 2048, 0, 18.9, 32_696),
    _one("5.8b", "qlora_12.8b", "fp8", 8192, 28, 6.58, 27_107),
    _one("5.8b", "qlora_12.8b", "fp8", 8192, 20, 10.9, 28_979),
    _one("5.8b", "qlora_12.8b", "fp16", 8192, 0, 33.8, 23_947, *IN_BF16),
    _one("5.8b", "lora_12.8b", "fp16", 4096, 0, 21.1, 23_675, *IN_BF16),
    _one("5.8b", "lora_12.8b", "fp8", 8192, 0, 31.1, 36_512, *FP8_BASE),
    _one("5.8b", "full_12.8b", "all weights", 2048, 0, 55.1, 8_756),
    _one("3.8b", "qlora_12.8b", "fp8", 8192, 0, 26.1, 51_346),
    _one("3.8b", "full_12.8b", "all weights", 2048, 0, 35.7, 11_249),
    _one("1.3b", "qlora_12.8b", "fp8", 8192, 0, 11.9, 117_634),
    _one("1.3b", "lora_12.8b", "fp16", 2048, 0, 4.81, 64_191, *IN_BF16),
    _one("1.3b", "full_1.3b", "all weights", 2048, 0, 10.7, 13_529),
    _one("1.3b", "full_1.3b", "all weights", 8192, 0, 19.2, 39_052),
)
