"""Measure how fast recipes train, and in how much memory, beside what others do with the same documents.

    python scripts/bench.py scripts/recipes/qlora_12.8b.yaml scripts/recipes/full_1.3b.yaml --steps 16
    accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes 1 scripts/bench.py RECIPE.yaml

Random weights at the model's true shapes, no download; documents of the original notebooks' lengths; only real tokens
count, padding never. Every recipe key is also a flag. Each contender runs in a process of its own: `ours` as train.py
trains, `bf16` the same with --compute-dtype bf16, `fp8-base` with --base-precision fp8, `plain` with --fast off, `loop`
an explicit loop in Trainer's place, `original` the original notebooks' recipe, `trl` TRL's SFTTrainer where it is
installed. Under accelerate launch only `ours` is measured, on that strategy.
--generate measures answering instead: the original's loop, transformers' batches, the static decoder.
Prints one table and adds a JSON line a measurement to --out.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from llm_qa import files
from llm_qa.benchmark.answering import ANSWERING, measure_answering
from llm_qa.benchmark.ceiling import matrix_rate
from llm_qa.benchmark.contenders import CONTENDERS
from llm_qa.benchmark.trace import Trace
from llm_qa.benchmark.trial import Trial, set_up
from llm_qa.config import Recipe, load_recipe, recipe_flags
from llm_qa.console import EXIT_FAILED, UserError, format_table, is_main_process, run_script, say
from llm_qa.models import gpus
from llm_qa.training.stopping import under_a_launcher
from llm_qa.training.strategy import end_together

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "tiny.yaml"
CEILING = "ceiling"  # the child process that measures what the device can reach
ORIGINAL_QUESTIONS = 1  # one at a time, and slow


def parse_arguments() -> tuple[argparse.Namespace, list[Recipe]]:
    """The script's own flags and the recipes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipes", type=Path, nargs="*", metavar="RECIPE.yaml", help="files of scripts/recipes/")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="who is measured")
    parser.add_argument("--steps", type=int, default=8, help="updates that are measured")
    parser.add_argument("--warmup", type=int, default=3, help="updates before them")
    parser.add_argument("--out", type=Path, default=Path("reports/bench.jsonl"), help="one JSON line a measurement")
    parser.add_argument("--generate", action="store_true", help="measure answering in place of training")
    parser.add_argument("--questions", type=int, default=256, help="asked at once with --generate")
    parser.add_argument("--new-tokens", type=int, default=128, help="of each answer with --generate")
    parser.add_argument("--trace", action="store_true", help="profile one more update of ours by category of kernel")
    parser.add_argument("--gpu-memory-limit", type=gibibytes, metavar="16GiB", help="play a smaller card")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)  # a child writes what it measured there
    parser.add_argument("--child", choices=(*CONTENDERS, *ANSWERING, CEILING), help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    for name in ("steps", "warmup", "questions", "new_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1.")
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


def measure(contender: str, recipe: Recipe, options: argparse.Namespace) -> dict:
    """One row, measured in this process."""
    trace = Trace() if options.trace and contender == "ours" else None
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(recipe, options.warmup, options.steps, folder, trace, options.gpu_memory_limit)
        row = answer(trial, contender, options) if options.generate else CONTENDERS[contender](trial)
    if trace:
        say(format_table(["GPU time of one update", "ms", "share", "largest kernels (times)"], trace.rows))
    return {
        "contender": contender,
        "recipe": f"{recipe.model} {recipe.method} {row['settings']['base_precision']}",
        **row,
        "device": gpus.device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def answer(trial: Trial, how: str, options: argparse.Namespace) -> dict:
    """How fast the recipe's model answers in one of the ways of ANSWERING."""
    setup, questions = set_up(trial), options.questions
    asked = {"questions": min(questions, ORIGINAL_QUESTIONS) if how == "original" else questions, "rows": questions}
    row = measure_answering(setup.model.eval(), how, **asked, new_tokens=options.new_tokens)
    say(row["report"])
    return {**row, "settings": setup.recipe.to_dict()}


def in_a_child(contender: str, recipe: Path, options: argparse.Namespace, folder: str) -> dict | None:
    """The row that a process of its own measured; None, with the reason on the screen, when it could not."""
    row = Path(folder) / f"{contender}.json"
    flags = [word for word in sys.argv[1:] if Path(word) not in options.recipes]
    child = [sys.executable, __file__, str(recipe), *flags, "--child", contender, "--row", str(row)]
    return files.read_json(row) if subprocess.run(child).returncode == 0 else None


def table(rows: list[dict]) -> str:
    """The measurements as text; HFU is the share of the ceiling, recomputed products counted."""
    header = ["recipe", "contender", "strategy", "tok/s", "HFU", "GiB", "reserved", "s/epoch", "first update after"]
    lines = [
        [
            row["recipe"],
            row["contender"],
            row["strategy"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] * row['flops_per_token'] / row['ceiling']:.0%}" if row.get("ceiling") else "",
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
    header = ["recipe", "answers by", "questions at once", "tok/s", "ms a token step", "GiB", "ready after"]
    lines = [
        [
            row["recipe"],
            row["contender"],
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
    """Measure each recipe with each contender, keep the rows, print the table."""
    options, recipes = parse_arguments()
    if options.child:
        rate = {"rate": matrix_rate()} if options.child == CEILING else measure(options.child, recipes[0], options)
        files.write_json(options.row, rate)
        return 0
    rows, missing = [], []
    names = ANSWERING if options.generate else options.contenders
    if under_a_launcher() and options.generate:
        raise UserError("--generate measures one process: start scripts/bench.py with python, without accelerate.")
    if under_a_launcher():
        rows = [measure("ours", recipe, options) for recipe in recipes]
        if is_main_process():
            keep(options.out, rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            ceiling = None if options.generate else in_a_child(CEILING, options.recipes[0], options, folder)
            for path in options.recipes:
                for contender in names:
                    say(f"== {contender}, {path.stem} ==")
                    if found := in_a_child(contender, path, options, folder):
                        rows.append({**found, "ceiling": ceiling and ceiling["rate"]})
                        keep(options.out, rows[-1:])
                    else:
                        missing.append(f"{contender}, {path.stem}")
        if ceiling:
            say(f"one large matrix product reaches {ceiling['rate'] / 1e12:,.2f} TFLOP/s here: the ceiling of HFU")
    if rows:
        say(answering_table(rows) if options.generate else table(rows))
        say(json.dumps({key: rows[0][key] for key in ("device", "torch", "transformers", "date")}))
    if missing:
        say(f"not measured, see above: {'; '.join(missing)}")
    end_together()
    return 0 if rows else EXIT_FAILED


if __name__ == "__main__":
    run_script(main)
