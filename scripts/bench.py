"""Measure a recipe's speed and memory: random weights at its model's true shapes, no download.

    accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes 1 scripts/bench.py RECIPE.yaml

Documents have the lengths of the original notebooks' data; only real tokens count, padding never. Every recipe key is
also a flag. One line a measurement is added to --out and the table of all of them is printed.
"""

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import TrainerCallback

from llm_qa import files
from llm_qa.config import EMBEDDED_MODEL, Recipe, load_recipe, recipe_flags
from llm_qa.console import UserError, format_table, is_main_process, run_script, say
from llm_qa.data.packing import PackedDataset, TokenizedPairs
from llm_qa.models import gpus, tiny
from llm_qa.models.lora import add_lora
from llm_qa.models.quantization import gpu_capability, resolve_precision
from llm_qa.models.random_weights import random_base
from llm_qa.models.shapes import model_config
from llm_qa.planning import check_hardware
from llm_qa.training.callbacks import RealTokens
from llm_qa.training.non_finite import StopOnNonFinite
from llm_qa.training.strategy import (
    check_strategy,
    end_together,
    engine_report,
    fit_precision,
    quiet_other_ranks,
    read_strategy,
    start_engine,
)
from llm_qa.training.trainer import build_trainer, training_arguments

PAIRS = 6440  # of the original notebooks' data
MEDIAN_TOKENS, SPREAD, SHORTEST, LONGEST = 64, 0.55, 20, 400  # of a pair there, roughly log-normal


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """The script's own flags and the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", type=Path, help="a file of scripts/recipes/")
    parser.add_argument("--steps", type=int, default=8, help="updates that are measured")
    parser.add_argument("--warmup", type=int, default=3, help="updates before them")
    parser.add_argument("--out", type=Path, default=Path("reports/bench.jsonl"), help="one JSON line a measurement")
    options, rest = parser.parse_known_args()
    if options.steps < 1 or options.warmup < 1:
        raise UserError(f"--steps {options.steps} and --warmup {options.warmup} must be at least 1.")
    overrides = recipe_flags(rest)
    overrides |= {"max_steps": options.warmup + options.steps, "save_strategy": "no", "logging_steps": 1}
    return options, load_recipe(options.recipe, overrides)


def synthetic_pairs(vocabulary: int, max_length: int, seed: int) -> TokenizedPairs:
    """PAIRS documents of random tokens with the original data's lengths; the first third of each is the question."""
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(np.log(MEDIAN_TOKENS), SPREAD, PAIRS)).clip(SHORTEST, min(LONGEST, max_length))
    lengths = lengths.astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(0, vocabulary, starts[-1], dtype=np.int32)
    return TokenizedPairs(tokens, starts, (lengths // 3).astype(np.int32), [""] * PAIRS)


class Stopwatch(TrainerCallback):
    """Seconds and real tokens of the updates after the warm-up, the GPU waited for at both ends."""

    def __init__(self, warmup: int):
        self.warmup = warmup
        self.started = self.seconds = 0.0
        self.tokens_before = self.tokens = 0
        self.losses: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep every loss: a run that is not finite is no measurement."""
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_step_end(self, args, state, control, **kwargs):
        """Start after the warm-up, stop after the last update."""
        if state.global_step not in (self.warmup, state.max_steps):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if state.global_step == self.warmup:
            self.started, self.tokens_before = now, state.num_input_tokens_seen
        else:
            self.seconds, self.tokens = now - self.started, state.num_input_tokens_seen - self.tokens_before


def measure(recipe: Recipe, warmup: int, folder: str) -> dict:
    """Train for some updates under the launched strategy; returns one row of the table."""
    strategy = read_strategy()
    check_hardware(recipe, gpu_capability())
    check_strategy(recipe, strategy, torch.cuda.device_count() if torch.cuda.is_available() else None)
    precision = fit_precision(resolve_precision(recipe, gpu_capability()), strategy)
    quiet_other_ranks()
    arguments = training_arguments(recipe, precision, strategy, folder)
    start_engine(strategy)
    embedded = recipe.model == EMBEDDED_MODEL
    config = tiny.model_config(tiny.VOCABULARY, 0) if embedded else model_config(recipe.model)
    began = time.perf_counter()
    model = random_base(config, precision, arguments.device)
    if torch.cuda.is_available():  # what the building needed is no part of training
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if recipe.method == "lora":
        model = add_lora(model, recipe, precision.trains_in)
    built = time.perf_counter() - began
    pairs = synthetic_pairs(config.vocab_size, recipe.max_length, recipe.seed)
    packs = PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed, recipe.global_batch_size)
    watch = Stopwatch(warmup)
    trainer = build_trainer(
        model, tiny.build_tokenizer([""]), arguments, packs, None, [RealTokens(), StopOnNonFinite(), watch]
    )
    trainer.train()
    allocated = [gpus.peak_memory_bytes()]
    reserved = [torch.cuda.max_memory_reserved() if torch.cuda.is_available() else allocated[0]]
    rate = watch.tokens / watch.seconds
    return {
        "recipe": recipe.model + " " + recipe.method + " " + recipe.base_precision,
        "strategy": str(strategy),
        "engine": engine_report(trainer),
        "tokens_per_second": round(rate, 1),
        "peak_allocated_bytes": allocated[0],
        "peak_reserved_bytes": reserved[0],
        "seconds_per_epoch": round(len(pairs.tokens) / rate, 1),
        "build_seconds": round(built, 1),
        "updates_measured": recipe.training["max_steps"] - warmup,
        "tokens_measured": watch.tokens,
        "last_loss": watch.losses[-1],
        "packs_full": round(packs.efficiency, 4),
        "device": gpus.device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "settings": recipe.to_dict(),
    }


def table(rows: list[dict]) -> str:
    """The measurements as text."""
    header = ["recipe", "strategy", "tok/s", "peak GiB", "reserved GiB", "s/epoch"]
    lines = [
        [
            row["recipe"],
            row["strategy"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['peak_allocated_bytes'] / 2**30:.1f}",
            f"{row['peak_reserved_bytes'] / 2**30:.1f}",
            f"{row['seconds_per_epoch']:,.0f}",
        ]
        for row in rows
    ]
    return format_table(header, lines)


def main() -> int:
    """Measure, add the row to --out, print the table."""
    options, recipe = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(recipe, options.warmup, folder)
    if is_main_process():
        rows = [*(files.read_jsonl(options.out) if options.out.exists() else []), row]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        files.write_jsonl(options.out, rows)
        say(table(rows))
        say(json.dumps({key: row[key] for key in ("device", "torch", "transformers", "date", "last_loss")}))
    end_together()
    return 0


if __name__ == "__main__":
    run_script(main)
