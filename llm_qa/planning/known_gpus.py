"""What is known of GPUs without having one: memory, matrix rates, capability, links between GPUs (no torch)."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace

from llm_qa.console import UserError
from llm_qa.language import tr

OLDEST = (7, 5)  # compute capability of what bitsandbytes' CUDA 13 build contains; precision.py refuses nf4 below it
NVLINK, PCIE5, PCIE4, PCIE3 = 450e9, 50e9, 25e9, 12e9  # bytes a second in one direction, as published


@dataclass(frozen=True)
class Gpu:
    """A GPU: GiB that torch finds on it, dense peaks in FLOP/s with fp32 accumulation by the vendor's data sheet.

    `fp8` is 0 without fp8 units. `measured` is True where this project's speeds were measured on the GPU itself.
    `share` of the computed speeds was reached on this machine, as `calibration` says (calibration.py).
    """

    name: str
    gib: float
    fp16: float
    fp8: float
    capability: tuple[int, int]
    link: float = PCIE4
    measured: bool = False
    share: float = 1.0
    calibration: str = ""


def _gpu(name: str, gib: float, tera16: float, tera8: float, capability: tuple[int, int], *more) -> Gpu:
    return Gpu(name, gib, tera16 * 1e12, tera8 * 1e12, capability, *more)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("P100", 15.9, 21, 0, (6, 0), PCIE3),
        _gpu("V100", 15.8, 125, 0, (7, 0), PCIE3),
        _gpu("V100 32GB", 31.7, 125, 0, (7, 0), PCIE3),
        _gpu("V100 PCIE", 15.8, 112, 0, (7, 0), PCIE3),
        _gpu("T4", 14.6, 65, 0, (7, 5), PCIE3),
        _gpu("RTX 3060", 11.6, 25.5, 0, (8, 6)),
        _gpu("RTX 3080", 9.6, 59.5, 0, (8, 6)),
        _gpu("RTX 3090", 23.6, 71, 0, (8, 6)),
        _gpu("RTX 4060 TI 16GB", 15.6, 44, 88, (8, 9)),
        _gpu("RTX 4070", 11.6, 58, 117, (8, 9)),
        _gpu("RTX 4080", 15.6, 97, 195, (8, 9)),
        _gpu("RTX 4090", 23.5, 165, 330, (8, 9)),
        _gpu("RTX 5090", 31.4, 209, 419, (12, 0), PCIE5),
        _gpu("RTX A6000", 47.4, 155, 0, (8, 6)),
        _gpu("A10", 22.0, 125, 0, (8, 6)),
        _gpu("A10G", 22.0, 70, 0, (8, 6)),
        _gpu("L4", 22.0, 121, 242, (8, 9)),
        _gpu("L40", 44.4, 181, 362, (8, 9)),
        _gpu("L40S", 44.4, 362, 733, (8, 9)),
        _gpu("A100", 79.2, 312, 0, (8, 0), NVLINK),
        _gpu("A100 40GB", 39.4, 312, 0, (8, 0), NVLINK),
        _gpu("A100 PCIE", 79.2, 312, 0, (8, 0)),
        _gpu("H100", 79.2, 989, 1979, (9, 0), NVLINK, True),
        _gpu("H100 PCIE", 79.2, 756, 1513, (9, 0), PCIE5),
        _gpu("H200", 139.8, 989, 1979, (9, 0), NVLINK, True),
        _gpu("B200", 178.4, 2250, 4500, (10, 0), NVLINK),
    )
}
# What may stand in a name beside the GPU's own: none of it changes the peak.
BESIDE = re.compile(r"NVIDIA|TESLA|GEFORCE|SXM\d*|\d+GB|HBM\d\w*")


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a name as the driver or a user writes it; None where it is not known (no guess).

    Whole names: an "L40" is no "L4", an "RTX A1000" no "A100", a laptop's or a MIG slice's peak is not the GPU's.
    """
    words = re.split(r"[\s-]+", name.upper().strip())
    size = next((word for word in words if re.fullmatch(r"\d+GB", word)), "")
    plain = " ".join(word for word in words if not BESIDE.fullmatch(word))
    return GPUS.get(f"{plain} {size}") or GPUS.get(plain)


def parse_gpus(text: str | None, memory_gib: float | None = None) -> tuple[Gpu, int]:
    """(gpu, number of GPUs) of "RTX 4090" or "T4:2"; without a text those of this machine, by nvidia-smi.

    `memory_gib` replaces what the table knows. UserError for an unknown GPU, and where this machine has none.
    """
    if text is None:
        found = gpus_of_this_machine()
        if not found:
            raise UserError(tr("This machine shows no NVIDIA GPU: name one with --gpu, like {names}.", names=_names()))
        name, count = found[0][0], len(found)
        memory_gib = memory_gib or found[0][1]
    else:
        name, _, number = text.partition(":")
        if number and not (number.strip().isdecimal() and int(number) > 0):
            raise UserError(
                tr("--gpu {text}: {number!r} is not a number of GPUs; write --gpu 'T4:2'.", text=text, number=number)
            )
        count = int(number or 1)
    gpu = find_gpu(name)
    if gpu is None:
        raise UserError(
            tr(
                "--gpu {name} is not in the table: choose one of {names}, or one like it with --memory GiB.",
                name=name,
                names=_names(),
            )
        )
    if gpu.capability < OLDEST:
        raise UserError(
            tr(
                "--gpu {name} has compute capability {major}.{minor}, and 4-bit weights need 7.5 "
                "(bitsandbytes' CUDA 13 build): choose a T4 or newer.",
                name=gpu.name,
                major=gpu.capability[0],
                minor=gpu.capability[1],
            )
        )
    return replace(gpu, gib=memory_gib or gpu.gib), count


def _names() -> str:
    return ", ".join(name for name, gpu in GPUS.items() if gpu.capability >= OLDEST)


def gpus_of_this_machine() -> list[tuple[str, float]]:
    """(name, GiB) of every GPU here."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in text.splitlines() if line.strip()]
    return [(name.strip(), float(mib) / 1024) for name, _, mib in rows]
