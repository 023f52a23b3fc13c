"""Seconds that a token of training takes, on paper (no torch): products by the card's peak, and what is gathered.

A token costs 2 FLOPs a weight forward, 2 for the gradient of the input and, where all weights train, 2 for theirs; what
is recomputed costs its 2 forward ones again. The shares of the peak that are reached, and of linear growth with more
cards, were fitted to the runs of `measured.py` on H100 and H200. The plain path, other cards and links are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.planning.gpus import NVLINK, Gpu

REACHED = {
    "fp8": 0.445,
    "fp16": 0.56,
    "all weights": 0.45,
    "plain path": 0.23,
}  # share of the peak, first and last pass
RECOMPUTED = {"fp8": 0.60, "fp16": 0.75, "all weights": 0.75, "plain path": 0.23}  # the same of what is recomputed
GROWTH = {"ddp": 0.95, "zero2": 0.90}  # a doubling of the cards keeps
# Under ZeRO-3 a pass waits for what it gathers; as in training/growth.py: bytes a second that a card receives by NVLink
# while it computes, by which share of that time products are slowed down, and seconds of the optimizer for a weight.
RECEIVED, SLOWED, UPDATE = 120e9, 0.8, 0.56 / 12.9e9
ZERO3 = ("zero3", "zero3, all weights")  # engines
UNCERTAIN = 2.0  # factor by which times of cards and models may be off that were not measured; a judgement
UNCERTAIN_PLAIN = 4.0  # the same before Ampere: the share there is of one run, on an H100
MEASURED_WITHIN = 0.15  # share by which they are off on cards that were, for the model that was
MEASURED_MODEL = "EleutherAI/polyglot-ko-12.8b"


@dataclass(frozen=True)
class Products:
    """`kind` is a key of REACHED; `weights` of all products together; `recomputed`: the share of the layers."""

    kind: str
    weights: int
    recomputed: float


def tokens_per_second(gpu: Gpu, cards: int, engine: str, products: Products, gathered: float, tokens: int) -> float:
    """Tokens a second of all `cards` together.

    `engine` is a key of GROWTH, "one" or in ZERO3. `gathered` are the bytes that each card sends in an update of
    `tokens` tokens. Under ZeRO-3 they are hidden behind the products as far as these take as long. Where cards have no
    NVLink their time is added: nothing is hidden.
    """
    peak = gpu.fp8 if products.kind == "fp8" else gpu.fp16
    trained = 2.0 if products.kind == "all weights" else 0.0
    once = (4.0 + trained) / (REACHED[products.kind] * peak)
    again = 2.0 * products.recomputed / (RECOMPUTED[products.kind] * peak)
    optimizer = 0.0
    if engine == ZERO3[1]:  # its optimizer is shared out, so the passes are counted at the rate of frozen weights' ones
        once, again = (4 / REACHED["fp16"] / peak + 2 / RECOMPUTED["fp16"] / peak) * 8 / 6, 0.0
        optimizer = UPDATE * products.weights / cards / tokens
    growth = 1.0 if cards == 1 else GROWTH.get(engine, 1.0) ** (cards.bit_length() - 1)
    seconds = products.weights * (once + again) / (cards * growth)
    if engine in ZERO3 and gpu.link >= NVLINK:
        transfer = gathered / RECEIVED / tokens
        seconds = max(seconds, transfer) + SLOWED * transfer
    seconds += optimizer
    if gpu.link < NVLINK and cards > 1:
        seconds += gathered / gpu.link / tokens
    return 1 / seconds


def uncertainty(gpu: Gpu, model: str) -> float:
    """The factor by which a time may be longer or shorter."""
    if gpu.capability < (8, 0):
        return UNCERTAIN_PLAIN
    return 1 + MEASURED_WITHIN if gpu.measured and model == MEASURED_MODEL else UNCERTAIN


def trust(gpu: Gpu, model: str) -> str:
    """The same in words."""
    if (factor := uncertainty(gpu, model)) == 1 + MEASURED_WITHIN:
        return f"within {MEASURED_WITHIN:.0%} of what was measured on this card"
    what = "this model" if gpu.measured else "this card"
    return f"estimates, as {what} was not measured: they may be off by a factor of {factor:g}"
