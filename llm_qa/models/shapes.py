"""Shapes of known models (no torch).

Parameter counts are computed from the shapes; they equal the published ones except for the 12.8B model, whose card says
12,898,631,680.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Architecture of one known checkpoint (d_* in units, `rotary_share` the share of a head that is rotated)."""

    model_type: str
    parameters: int
    layers: int
    d_model: int
    d_ff: int
    heads: int
    vocabulary: int
    context: int
    rotary_share: float = 0.5


POLYGLOT_VOCABULARY = 30_080  # 30,003 tokens, padded
SHAPES = {
    "skt/kogpt2-base-v2": Shape("gpt2", 125_164_032, 12, 768, 3072, 12, 51_200, 1024),
    "EleutherAI/polyglot-ko-1.3b": Shape("gpt_neox", 1_331_810_304, 24, 2048, 8192, 16, POLYGLOT_VOCABULARY, 2048),
    "EleutherAI/polyglot-ko-3.8b": Shape("gpt_neox", 3_809_974_272, 32, 3072, 12288, 24, POLYGLOT_VOCABULARY, 2048),
    "EleutherAI/polyglot-ko-5.8b": Shape(
        "gpt_neox", 5_885_059_072, 28, 4096, 16384, 16, POLYGLOT_VOCABULARY, 2048, 0.25
    ),
    "EleutherAI/polyglot-ko-12.8b": Shape("gpt_neox", 12_893_603_840, 40, 5120, 20480, 40, POLYGLOT_VOCABULARY, 2048),
}
