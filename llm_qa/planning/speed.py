"""Seconds that a token of training takes, on paper (no torch): products by the GPU's peak, and what is gathered.

A token costs 2 FLOPs a weight forward, 2 for the gradient of the input and, where all weights train, 2 for theirs; what
is recomputed costs its 2 forward ones again. What is not a product (norms, GELU, attention, LoRA) grows with the width
where products grow with its square, so a narrow model reaches less of the peak; an update costs a fixed time besides.
The constants were fitted to the runs of `measured.py` on H100 and H200. The plain path, other GPUs and links are
estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.language import tr
from llm_qa.planning.known_gpus import NVLINK, Gpu

# By kind of products: the share of the peak that a very wide model reaches in the first and the last pass, the same of
# what is recomputed, the width at which it is half of that, and the seconds of an update beside its passes.
REACHED = {"fp8": 0.58, "fp16": 0.57, "all weights": 0.70, "plain path": 0.23}
RECOMPUTED = {"fp8": 0.75, "fp16": 0.80, "all weights": 0.80, "plain path": 0.23}
HALF_WIDTH = {"fp8": 1240}
UPDATE_SECONDS = {"fp8": 0.014, "fp16": 0.014, "all weights": 0.123}
GROWTH = {"ddp": 0.95, "zero2": 0.90}  # a doubling of the GPUs keeps
# Under ZeRO-3 a pass waits for what it gathers; as in training/growth.py: bytes a second that a GPU receives by NVLink
# while it computes, by which share of that time products are slowed down, and seconds of the optimizer for a weight.
RECEIVED, SLOWED, UPDATE = 120e9, 0.8, 0.56 / 12.9e9
SHARDED_REACHED, SHARDED_RECOMPUTED = 0.56, 0.75  # what a GPU reaches there, in 16 bits
ZERO3 = ("zero3", "zero3, all weights")  # engines
UNCERTAIN = 2.0  # factor by which times of GPUs that were not measured may be off; a judgement
UNCERTAIN_PLAIN = 4.0  # the same before Ampere: the share there is of one run, on an H100
MEASURED_WITHIN = 0.15  # share by which they are off on GPUs that were


@dataclass(frozen=True)
class Products:
    """`kind` is a key of REACHED; `weights` of all products together; `recomputed`: the share of the layers."""

    kind: str
    weights: int
    recomputed: float
    d_model: int


def tokens_per_second(gpu: Gpu, gpus: int, engine: str, products: Products, gathered: float, tokens: int) -> float:
    """Tokens a second of all `gpus` together.

    `engine` is a key of GROWTH, "one" or in ZERO3. `gathered` are the bytes that each GPU sends in an update of
    `tokens` tokens. Under ZeRO-3 they are hidden behind the products as far as these take as long. Where GPUs have no
    NVLink their time is added: nothing is hidden.
    """
    peak = gpu.fp8 if products.kind == "fp8" else gpu.fp16
    trained = 2.0 if products.kind == "all weights" else 0.0
    if engine in ZERO3:
        passes = 4 / (SHARDED_REACHED * peak) + 2 * products.recomputed / (SHARDED_RECOMPUTED * peak)
        passes *= (6 + trained) / 6
        update = UPDATE * products.weights / gpus if trained else 0.0  # the optimizer is shared out
    else:
        narrow = 1 + HALF_WIDTH.get(products.kind, 0) / products.d_model
        passes = (4 + trained) / (REACHED[products.kind] * peak)
        passes = narrow * (passes + 2 * products.recomputed / (RECOMPUTED[products.kind] * peak))
        update = UPDATE_SECONDS.get(products.kind, 0.0)
    growth = 1.0 if gpus == 1 else GROWTH.get(engine, 1.0) ** (gpus.bit_length() - 1)
    seconds = products.weights * passes / (gpus * growth)
    if engine in ZERO3 and gpu.link >= NVLINK:
        transfer = gathered / RECEIVED / tokens
        seconds = max(seconds, transfer) + SLOWED * transfer
    seconds += update / tokens
    if gpu.link < NVLINK and gpus > 1:
        seconds += gathered / gpu.link / tokens
    return 1 / seconds


def uncertainty(gpu: Gpu) -> float:
    """The factor by which a time may be longer or shorter."""
    if gpu.capability < (8, 0):
        return UNCERTAIN_PLAIN
    return 1 + MEASURED_WITHIN if gpu.measured else UNCERTAIN


def trust(gpu: Gpu) -> str:
    """The same in words, or what the rates were scaled by."""
    if gpu.calibration:
        return gpu.calibration
    if (factor := uncertainty(gpu)) == 1 + MEASURED_WITHIN:
        return tr("within {share:.0%} of what was measured on this GPU", share=MEASURED_WITHIN)
    return tr("estimates, as this GPU was not measured: they may be off by a factor of {factor:g}", factor=factor)
