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
from llm_qa.planning import growth
from llm_qa.planning.known_gpus import NVLINK, PCIE4, PCIE5, Gpu
from llm_qa.planning.memory import Traffic

# By kind of products: the share of the peak that a very wide model reaches in the first and the last pass, the same of
# what is recomputed, the width at which it is half of that, and the seconds of an update beside its passes.
REACHED = {"fp8": 0.58, "fp16": 0.57, "all weights": 0.70, "plain path": 0.23}
RECOMPUTED = {"fp8": 0.75, "fp16": 0.80, "all weights": 0.80, "plain path": 0.23}
HALF_WIDTH = {"fp8": 1240}
UPDATE_SECONDS = {"fp8": 0.014, "fp16": 0.014}
PASS_SECONDS = {"all weights": 0.123}  # the same of each pass: without CUDA graphs every kernel is started anew
GROWTH = {"ddp": 0.95, "zero2": 0.90}  # a doubling of the GPUs keeps
SHARDED = 0.61  # share of the peak under ZeRO-3, where every layer is recomputed (growth.py has the gathers)
UPDATE = 0.56 / 12.9e9  # seconds of 8-bit Adam for a weight on one GPU under ZeRO-3, which shares it out
# Seconds of DeepSpeed's Adam for a weight in the machine's memory, on all its cores; from a single run, on two H200.
CPU_UPDATE = 0.76e-9
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


def tokens_per_second(
    gpu: Gpu,
    gpus: int,
    engine: str,
    products: Products,
    traffic: Traffic,
    tokens: int,
    *,
    offload: str = "",
    machines: int = 1,
) -> float:
    """Tokens a second of all `gpus` together.

    `engine` is a key of GROWTH, "one" or "zero3", `tokens` are those of an update, `traffic` what a GPU sends in it.
    Under ZeRO-3 it is hidden behind the products as far as these take as long. Where GPUs have no NVLink its time is
    added: nothing is hidden. `offload` is one of memory.OFFLOADS: its time is added too.
    """
    peak = gpu.fp8 if products.kind == "fp8" else gpu.fp16
    trained = 2.0 if products.kind == "all weights" else 0.0
    if engine == "zero3":
        rate, forward = SHARDED * peak, 2.0 * products.weights
        backward = products.weights * (2 + trained + 2 * products.recomputed)
        linked = gpu.link >= NVLINK
        gathers = (traffic.weights, traffic.gradients) if linked else (0.0, 0.0)
        work = growth.Work(forward, backward, rate, *gathers)
        passes = traffic.passes * growth.pass_seconds(work, tokens // (gpus * traffic.passes), gpus)
        update = UPDATE * products.weights / gpus if trained else 0.0
        if offload:
            update = CPU_UPDATE * products.weights / machines + _copied_weights(gpu, gpus, traffic, offload)
    else:
        narrow = 1 + HALF_WIDTH.get(products.kind, 0) / products.d_model
        token = (4 + trained) / (REACHED[products.kind] * peak)
        token = narrow * (token + 2 * products.recomputed / (RECOMPUTED[products.kind] * peak))
        grown = 1.0 if gpus == 1 else GROWTH[engine] ** (gpus.bit_length() - 1)
        passes = tokens * products.weights * token / (gpus * grown)
        passes += traffic.passes * PASS_SECONDS.get(products.kind, 0.0)
        update = UPDATE_SECONDS.get(products.kind, 0.0)
    sent = traffic.sent / gpu.link if gpu.link < NVLINK else 0.0
    return gpu.share * tokens / (passes + update + sent)


def _copied_weights(gpu: Gpu, gpus: int, traffic: Traffic, offload: str) -> float:
    """Seconds in which each GPU reads its share of the weights from the machine's memory, twice a pass."""
    link = min(gpu.link, PCIE5 if gpu.capability >= (9, 0) else PCIE4)
    return 2 * traffic.passes * traffic.weights / gpus / link if offload == "all" else 0.0


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
