"""What is measured: a benchmark's model on its device, ready to train, its documents, and the row that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llm_qa.benchmark.documents import synthetic_pairs
from llm_qa.benchmark.stopwatch import Stopwatch
from llm_qa.benchmark.trace import Trace
from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe
from llm_qa.console import say
from llm_qa.data.packing import PackedDataset, TokenizedPairs
from llm_qa.models import embedded as models_embedded
from llm_qa.models.fast.plan import FastPath, choose_fast_path
from llm_qa.models.loading import align_special_tokens
from llm_qa.models.lora import add_lora, linear_parameters
from llm_qa.models.precision import Precision, gpu_capability, resolve_precision
from llm_qa.models.random_weights import random_base
from llm_qa.models.registry import model_config
from llm_qa.planning import cards
from llm_qa.planning.dry_run import check_fit, check_hardware
from llm_qa.training.strategy import (
    Strategy,
    check_strategy,
    fit_precision,
    quiet_other_ranks,
    read_strategy,
    start_engine,
)
from llm_qa.training.trainer import training_arguments, use_fast_path


@dataclass(frozen=True)
class BenchmarkConfig:
    """What every baseline is given; `folder` is for what a trainer insists on writing.

    `memory_limit`, in GiB, is what a smaller card would have, of which training may take all.
    """

    recipe: Recipe
    warmup: int
    steps: int
    folder: str
    trace: Trace | None = None
    memory_limit: float | None = None


@dataclass(frozen=True)
class Setup:
    """A model on its device, ready to train, with the arguments and documents for it."""

    recipe: Recipe
    strategy: Strategy
    precision: Precision
    arguments: Any  # TrainingArguments
    model: torch.nn.Module
    linears: int  # weights of the base that take part in products on a token
    tokenizer: Any  # of no text: its special tokens alone count
    pairs: TokenizedPairs


def set_up(bench_config: BenchmarkConfig) -> Setup:
    """Check the recipe against the machine, then build its model from random weights."""
    recipe, strategy = bench_config.recipe, read_strategy()
    check_hardware(recipe, gpu_capability())
    check_strategy(recipe, strategy, torch.cuda.device_count() if torch.cuda.is_available() else None)
    check_fit(recipe, strategy)
    precision = fit_precision(resolve_precision(recipe, gpu_capability()), strategy)
    quiet_other_ranks()
    arguments = training_arguments(recipe, precision, strategy, bench_config.folder)
    start_engine(strategy)
    embedded = recipe.model == EMBEDDED_MODEL
    config = models_embedded.model_config(models_embedded.VOCABULARY, 0) if embedded else model_config(recipe.model)
    model = random_base(config, precision, arguments.device)
    if torch.cuda.is_available():  # what the building needed is no part of training
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if bench_config.memory_limit:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, bench_config.memory_limit * 2**30 / total))
    linears, tokenizer = linear_parameters(model), models_embedded.build_tokenizer([""])
    align_special_tokens(model, tokenizer)
    if recipe.method == "lora":
        model = add_lora(model, recipe, precision.trains_in)
    pairs = synthetic_pairs(config.vocab_size, recipe.max_length, recipe.seed)
    return Setup(recipe, strategy, precision, arguments, model, linears, tokenizer, pairs)


def fast_path(setup: Setup, packs: PackedDataset) -> FastPath:
    """Let the policy choose, as train.py does."""
    rows = setup.arguments.per_device_train_batch_size
    path = choose_fast_path(
        setup.model,
        setup.recipe,
        setup.precision,
        tokens=rows * packs.capacity,
        max_label_tokens=rows * packs.max_label_tokens,
        zero_stage=setup.strategy.zero_stage,
        capability=gpu_capability(),
    )
    use_fast_path(setup.arguments, path)
    say(path.report)
    return path


def packs_of(setup: Setup) -> PackedDataset:
    """The documents as the recipe packs them."""
    recipe = setup.recipe
    return PackedDataset(setup.pairs, recipe.pack_length, recipe.loss_on, recipe.seed, recipe.global_batch_size)


def measured(setup: Setup, watch: Stopwatch, path: FastPath, epoch_tokens: int, **more: Any) -> dict[str, Any]:
    """The row of a baseline: speed, memory, and the FLOPs a token that its products took, recomputed ones too."""
    linears, layers = setup.linears, int(setup.model.config.num_hidden_layers)
    recomputed = path.recomputed if path.active else layers * (setup.recipe.recompute != "none")
    flops = cards.flops_per_token(linears, setup.recipe.method == "full") + 2.0 * linears * recomputed / layers
    flops -= path.skipped_flops
    allocated = cards.peak_memory_bytes()
    result = watch.result()
    return {
        **result,
        "peak_allocated_bytes": allocated,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else allocated,
        "seconds_per_epoch": round(epoch_tokens / result["tokens_per_second"], 1),
        "flops_per_token": flops,
        "strategy": str(setup.strategy),
        "path": path.report,
        "settings": setup.recipe.to_dict(),
        **more,
    }
