"""Measure how training scales with the number of GPUs of one machine: speed, efficiency, memory, communication.

    python scripts/bench_scaling.py --gpus 1 2 4 8
    python scripts/bench_scaling.py --gpus 1 2 4 --ways lora-zero3 full-zero3 --steps 8

Each measurement is scripts/bench.py under `accelerate launch`: random weights at the true shapes, documents of the
original notebooks' lengths, only real tokens count, a loss that is not finite fails. The tokens of one GPU's pass stay
the same, so the global batch grows with the GPUs. Efficiency is tokens/s a GPU against the fewest GPUs measured.
--side-by-side measures on the GPUs that a measurement leaves free at the same time: quicker, and they share the host.
Prints one table and adds one JSON line per measurement to --out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llm_qa import files
from llm_qa.console import EXIT_FAILED, ArgumentParser, UserError, format_table, positive_int, run_script, say

SCRIPTS = Path(__file__).parent
CONFIGS = SCRIPTS.parent / "accelerate_configs"
COMMUNICATION = "gathers and reductions between GPUs"  # the category of llm_qa/benchmark/trace.py
FIRST_PORT = 29_600
# All weights on two 80 GB GPUs leave little room, and fragments would take it.
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@dataclass(frozen=True)
class Way:
    """A recipe on a strategy; `packs` is what one GPU is given in a pass, `fewest` the GPUs that it needs."""

    name: str
    recipe: str
    config: str
    packs: int
    flags: tuple[str, ...] = ()
    fewest: int = 1

    def command(self, gpus: int, port: int, out: Path, options: argparse.Namespace) -> list[str]:
        """What measures it on so many GPUs."""
        config = "single_gpu" if gpus == 1 and self.config == "ddp" else self.config
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
        launch += ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", str(gpus)]
        launch += ["--main_process_port", str(port)]
        packs = options.packs or self.packs
        batch = ["--micro-batch-size", str(packs), "--global-batch-size", str(packs * gpus)]
        flags = () if options.recipe else self.flags
        steps = ["--steps", str(options.steps), "--warmup", str(options.warmup), "--trace", "--out", str(out)]
        recipe = options.recipe or SCRIPTS / "recipes" / f"{self.recipe}.yaml"
        return [*launch, str(SCRIPTS / "bench.py"), str(recipe), *flags, *batch, *steps, *options.bench_flags]


WHOLE = ("--pack-length", "8192", "--recompute", "none")
WAYS = {
    way.name: way
    for way in (
        Way("qlora-ddp", "qlora_12.8b", "ddp", 1, WHOLE),
        Way("qlora-zero2", "qlora_12.8b", "zero2", 1, WHOLE, fewest=2),
        Way("lora-zero3", "lora_12.8b", "zero3", 16),
        Way("full-zero3", "full_12.8b_zero3", "zero3", 16, fewest=2),
        Way("full-zero3-adamw-fp32", "full_12.8b_zero3", "zero3", 16, ("--optim", "adamw_torch_fused"), fewest=4),
        Way("full-zero3-optimizer-offload", "full_12.8b", "zero3_optimizer_offload", 16, ("--optim", "adamw_torch"), 2),
    )
}


class GPUs:
    """The GPUs of this machine that no measurement is using."""

    def __init__(self, numbers: list[str]):
        self.free, self.changed = list(numbers), threading.Condition()

    def take(self, count: int) -> list[str]:
        """Wait for so many free GPUs and take them."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.free) >= count)
            taken, self.free = self.free[:count], self.free[count:]
            return taken

    def give_back(self, numbers: list[str]) -> None:
        """Others may use them again."""
        with self.changed:
            self.free = sorted({*self.free, *numbers})
            self.changed.notify_all()


def parse_arguments() -> argparse.Namespace:
    """The script's flags; what it does not know goes to bench.py."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--gpus", nargs="+", type=positive_int, default=[1, 2, 4, 8], help="numbers of GPUs to measure")
    ways = f"what is measured (default: {' '.join(WAYS)})"
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=ways)
    parser.add_argument("--recipe", type=Path, help="measure this recipe in place of each way's own")
    parser.add_argument(
        "--packs", type=positive_int, help="sequences a GPU is given in a pass (default: each way's own)"
    )
    parser.add_argument("--steps", type=positive_int, default=6, help="updates that are measured")
    parser.add_argument("--warmup", type=positive_int, default=4, help="updates before the measured ones")
    parser.add_argument("--side-by-side", action="store_true", help="measure on free GPUs at the same time")
    parser.add_argument("--seconds", type=positive_int, default=1800, help="a measurement that takes longer is ended")
    parser.add_argument("--out", type=Path, default=Path("reports/scaling.jsonl"), help="one JSON line per measurement")
    options, rest = parser.parse_known_args()
    options.bench_flags = rest
    files.check_exists([options.recipe] if options.recipe else (), "--recipe")
    return options


def visible_gpus() -> list[str]:
    """Numbers of the GPUs that this command may use; none on a machine without."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [number for number in named.split(",") if number]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def measure(way: Way, gpus: int, port: int, machine: GPUs, options: argparse.Namespace, folder: Path) -> dict | None:
    """The row of bench.py for a way on so many GPUs; None where it failed, with its last words on the screen."""
    taken = machine.take(gpus)
    name, out = f"{way.name} on {gpus}", folder / f"{way.name}-{gpus}.jsonl"
    environment = {**os.environ, **EXPANDABLE, "CUDA_VISIBLE_DEVICES": ",".join(taken)}
    if taken[0].startswith("cpu"):  # no GPU: the processes run on the CPU
        environment["CUDA_VISIBLE_DEVICES"] = ""
    say(f"== {name} (GPU {', '.join(taken)}) ==")
    try:
        done = subprocess.run(
            way.command(gpus, port, out, options),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=options.seconds,
        )
        failure = "" if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout[-3000:]}"
    except subprocess.TimeoutExpired:
        failure = f"it took longer than --seconds {options.seconds}"
    finally:
        machine.give_back(taken)
    if failure or not out.exists():
        say(f"{name} was not measured: {failure or 'bench.py wrote no row'}")
        return None
    row = {"way": way.name, "gpus": gpus, "side_by_side": options.side_by_side, **files.read_jsonl(out)[-1]}
    say(f"{name}: {row['tokens_per_second']:,.0f} tokens/s, {row['peak_reserved_bytes'] / 2**30:.1f} GiB reserved")
    return row


def table(rows: list[dict]) -> str:
    """Speed, efficiency, memory and communication as text, in the order of WAYS and of the number of GPUs."""
    rows = sorted(rows, key=lambda row: (list(WAYS).index(row["way"]), row["gpus"]))
    first = {row["way"]: row for row in reversed(rows)}  # of each way: the fewest GPUs
    lines = []
    for row in rows:
        start, milliseconds = first[row["way"]], row.get("milliseconds_by_category") or {}
        efficiency = row["tokens_per_second"] / row["gpus"] / (start["tokens_per_second"] / start["gpus"])
        share = milliseconds[COMMUNICATION] / sum(milliseconds.values()) if sum(milliseconds.values()) else None
        lines.append(
            [
                row["way"],
                str(row["gpus"]),
                f"{row['tokens_per_second']:,.0f}",
                f"{row['tokens_per_second'] / row['gpus']:,.0f}",
                "" if row is start else f"{efficiency:.1%} of {start['gpus']}",
                f"{row['peak_allocated_bytes'] / 2**30:.1f}",
                f"{row['peak_reserved_bytes'] / 2**30:.1f}",
                "" if share is None else f"{share:.0%}",
            ]
        )
    header = ["way", "GPUs", "tok/s", "tok/s a GPU", "efficiency", "GiB", "reserved", "communication"]
    return format_table(header, lines)


def main() -> int:
    """Measure each way on each number of GPUs that the machine has, keep the rows, print the table."""
    options = parse_arguments()
    numbers = visible_gpus() or [f"cpu{number}" for number in range(max(options.gpus))]
    if min(options.gpus) > len(numbers):
        raise UserError(f"--gpus {min(options.gpus)} is more than the {len(numbers)} GPUs of this machine.")
    if left_out := [str(count) for count in options.gpus if count > len(numbers)]:
        say(f"not measured, as this machine has {len(numbers)} GPUs: {', '.join(left_out)}")
    jobs = [
        (WAYS[name], count)
        for count in sorted({count for count in options.gpus if count <= len(numbers)})
        for name in options.ways
        if count >= WAYS[name].fewest
    ]
    machine, rows = GPUs(numbers), []
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(len(numbers) if options.side_by_side else 1) as pool,
    ):
        measurements = [
            pool.submit(measure, way, count, FIRST_PORT + place, machine, options, Path(folder))
            for place, (way, count) in enumerate(jobs)
        ]
        for measurement in measurements:
            if row := measurement.result():
                rows.append(row)
                files.write_jsonl(options.out, [*(files.read_jsonl(options.out) if options.out.exists() else []), row])
    if rows:
        say(table(rows))
    return 0 if len(rows) == len(jobs) else EXIT_FAILED


if __name__ == "__main__":
    run_script(main)
