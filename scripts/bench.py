"""Measure the speed and memory of training recipes, beside other implementations on the same documents.

    python scripts/bench.py scripts/recipes/qlora_12.8b.yaml scripts/recipes/full_1.3b.yaml --steps 16
    accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes 1 scripts/bench.py RECIPE.yaml

Random weights at the model's true shapes, no download; documents of the original notebooks' lengths; only real tokens
count, not padding. Every recipe key is also a flag. Each baseline runs in a process of its own: `ours` as train.py
trains, `bf16` the same with --compute-dtype bf16, `fp8-base` with --base-precision fp8, `plain` with --fast off, `loop`
an explicit loop in Trainer's place, `original` the original notebooks' recipe, `trl` TRL's SFTTrainer where it is
installed. Under accelerate launch only `ours` is measured, on that strategy.
--generate measures answering instead: the original's loop, transformers' batches, the static decoder.
Prints one table and adds one JSON line per measurement to --out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llm_qa import files
from llm_qa.benchmark.choices import ANSWERING_BY_NAME, BASELINES_BY_NAME
from llm_qa.config.recipe import Recipe, load_recipe, recipe_flags
from llm_qa.console import (
    EXIT_FAILED,
    ArgumentParser,
    UserError,
    format_table,
    is_main_process,
    positive_int,
    run_script,
    say,
)
from llm_qa.migrations import renamed_flags

if TYPE_CHECKING:
    from llm_qa.benchmark.config import BenchmarkConfig


DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "tiny.yaml"
MATMUL_PEAK = "matmul_peak"  # the child process that measures what the device can reach
ORIGINAL_QUESTIONS = 1  # answered one at a time, which is slow


def parse_arguments() -> tuple[argparse.Namespace, list[Recipe]]:
    """The script's own flags and the recipes."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipes", type=Path, nargs="*", metavar="RECIPE.yaml", help="files of scripts/recipes/")
    parser.add_argument(
        "--baselines",
        nargs="+",
        choices=BASELINES_BY_NAME,
        default=list(BASELINES_BY_NAME),
        metavar="NAME",
        help=f"what is measured (default: {' '.join(BASELINES_BY_NAME)})",
    )
    parser.add_argument("--steps", type=positive_int, default=8, help="updates that are measured")
    parser.add_argument("--warmup", type=positive_int, default=3, help="updates before the measured ones")
    parser.add_argument("--out", type=Path, default=Path("reports/bench.jsonl"), help="one JSON line per measurement")
    parser.add_argument("--generate", action="store_true", help="measure answering in place of training")
    parser.add_argument("--questions", type=positive_int, default=256, help="number of questions with --generate")
    parser.add_argument("--new-tokens", type=positive_int, default=128, help="tokens of each answer with --generate")
    parser.add_argument("--trace", action="store_true", help="profile one more update of `ours` by category of kernel")
    parser.add_argument("--gpu-memory-limit", type=gibibytes, metavar="16GiB", help="act as a GPU with so much memory")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)  # where a child process writes its measurement
    parser.add_argument(
        "--child", choices=(*BASELINES_BY_NAME, *ANSWERING_BY_NAME, MATMUL_PEAK), help=argparse.SUPPRESS
    )
    options, rest = parser.parse_known_args(renamed_flags(sys.argv[1:]))
    overrides = recipe_flags(rest)
    overrides |= {
        "max_steps": options.warmup + options.steps + options.trace,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": options.steps,
    }
    options.recipes = options.recipes or [DEFAULT_RECIPE]
    return options, [load_recipe(path, overrides) for path in options.recipes]


def gibibytes(text: str) -> float:
    """'16GiB' or '16' -> 16.0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:GiB)?", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory like 16GiB")
    return float(match[1])


def measure(baseline: str, recipe: Recipe, options: argparse.Namespace) -> dict:
    """One row, measured in this process."""
    import torch
    import transformers

    from llm_qa.benchmark.baselines import BASELINES
    from llm_qa.benchmark.config import BenchmarkConfig
    from llm_qa.benchmark.trace import Trace
    from llm_qa.planning import this_gpu

    trace = Trace() if options.trace and baseline == "ours" else None
    with tempfile.TemporaryDirectory() as folder:
        bench_config = BenchmarkConfig(recipe, options.warmup, options.steps, folder, trace, options.gpu_memory_limit)
        row = answer(bench_config, baseline, options) if options.generate else BASELINES[baseline](bench_config)
    if trace:
        say(format_table(["GPU time of one update", "ms", "share", "largest kernels (times)"], trace.rows))
    return {
        "baseline": baseline,
        "recipe": f"{recipe.model} {recipe.method} {row['settings']['base_precision']}",
        **row,
        **({"milliseconds_by_category": trace.milliseconds} if trace else {}),
        "device": this_gpu.device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def answer(bench_config: BenchmarkConfig, how: str, options: argparse.Namespace) -> dict:
    """The speed of the recipe's model with one of the methods of ANSWERING."""
    from llm_qa.benchmark.answering import measure_answering
    from llm_qa.benchmark.config import set_up

    setup, questions = set_up(bench_config), options.questions
    asked = {"questions": min(questions, ORIGINAL_QUESTIONS) if how == "original" else questions, "rows": questions}
    row = measure_answering(setup.model.eval(), how, **asked, new_tokens=options.new_tokens)
    say(row["report"])
    return {**row, "settings": setup.recipe.to_dict()}


def in_a_child(baseline: str, recipe: Path, options: argparse.Namespace, folder: str) -> dict | None:
    """The row measured in a child process; None where that failed, with its reason on the screen."""
    row = Path(folder) / f"{baseline}.json"
    flags = [word for word in sys.argv[1:] if Path(word) not in options.recipes]
    child = [sys.executable, __file__, str(recipe), *flags, "--child", baseline, "--row", str(row)]
    return files.read_json(row) if subprocess.run(child).returncode == 0 else None


def table(rows: list[dict]) -> str:
    """The measurements as text; HFU is the share of the matmul peak, recomputation included."""
    header = ["recipe", "baseline", "strategy", "tok/s", "HFU", "GiB", "reserved", "s/epoch", "first update after"]
    lines = [
        [
            row["recipe"],
            row["baseline"],
            row["strategy"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] * row['flops_per_token'] / row['matmul_peak']:.0%}"
            if row.get("matmul_peak")
            else "",
            f"{row['peak_allocated_bytes'] / 2**30:.1f}",
            f"{row['peak_reserved_bytes'] / 2**30:.1f}",
            f"{row['seconds_per_epoch']:,.0f}",
            f"{row['start_up_seconds']:.0f} s",
        ]
        for row in rows
    ]
    return format_table(header, lines)


def answering_table(rows: list[dict]) -> str:
    """The measurements of --generate as text."""
    header = ["recipe", "answers by", "questions at once", "tok/s", "ms per token step", "GiB", "ready after"]
    lines = [
        [
            row["recipe"],
            row["baseline"],
            f"{row['rows']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['milliseconds_a_token_step']:,.1f}",
            f"{row['peak_allocated_bytes'] / 2**30:.1f}",
            f"{row['build_seconds']:.0f} s",
        ]
        for row in rows
    ]
    return format_table(header, lines)


def keep(out: Path, rows: list[dict]) -> None:
    """Add rows to --out."""
    files.write_jsonl(out, [*(files.read_jsonl(out) if out.exists() else []), *rows])


def main() -> int:
    """Measure each recipe with each baseline, keep the rows, print the table."""
    options, recipes = parse_arguments()
    # Imported here, because they take seconds that --help and errors in flags should not wait for.
    from llm_qa.benchmark.answering import ANSWERING
    from llm_qa.benchmark.matmul_peak import matrix_rate
    from llm_qa.training.callbacks.stopping import under_a_launcher
    from llm_qa.training.strategy import end_together

    if options.child:
        rate = {"rate": matrix_rate()} if options.child == MATMUL_PEAK else measure(options.child, recipes[0], options)
        files.write_json(options.row, rate)
        return 0
    rows, missing = [], []
    names = ANSWERING if options.generate else options.baselines
    if under_a_launcher() and options.generate:
        raise UserError("--generate measures one process: start scripts/bench.py with python, without accelerate.")
    if under_a_launcher():
        rows = [measure("ours", recipe, options) for recipe in recipes]
        if is_main_process():
            keep(options.out, rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            matmul_peak = None if options.generate else in_a_child(MATMUL_PEAK, options.recipes[0], options, folder)
            for path in options.recipes:
                for baseline in names:
                    say(f"== {baseline}, {path.stem} ==")
                    if found := in_a_child(baseline, path, options, folder):
                        rows.append({**found, "matmul_peak": matmul_peak and matmul_peak["rate"]})
                        keep(options.out, rows[-1:])
                    else:
                        missing.append(f"{baseline}, {path.stem}")
        if matmul_peak:
            say(
                f"one large matrix product reaches {matmul_peak['rate'] / 1e12:,.2f} TFLOP/s here: HFU is a share of it"
            )
    if rows:
        say(answering_table(rows) if options.generate else table(rows))
        say(json.dumps({key: rows[0][key] for key in ("device", "torch", "transformers", "date")}))
    if missing:
        say(f"not measured, see above: {'; '.join(missing)}")
    end_together()
    return 0 if rows else EXIT_FAILED


if __name__ == "__main__":
    run_script(main)
