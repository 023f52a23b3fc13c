"""What is measured: a benchmark's model on its device, ready to train, its documents, and the row that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llm_qa.benchmark.documents import synthetic_pairs
from llm_qa.benchmark.stopwatch import Stopwatch
from llm_qa.benchmark.trace import Trace
from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe
from llm_qa.data.packing import PackedDataset, TokenizedPairs
from llm_qa.models import embedded as models_embedded
from llm_qa.models.fast.choice import FastPath
from llm_qa.models.precision import Precision
from llm_qa.models.random_weights import random_base
from llm_qa.models.registry import model_config
from llm_qa.planning import this_gpu
from llm_qa.planning.dry_run import check_fit
from llm_qa.planning.preflight import check_machine
from llm_qa.training.data_sets import pack
from llm_qa.training.model_setup import make_trainable, set_up_fast_path
from llm_qa.training.strategy import Strategy, quiet_other_ranks, read_strategy, start_engine
from llm_qa.training.trainer import training_arguments


@dataclass(frozen=True)
class BenchmarkConfig:
    """What every baseline is given; `folder` is for what a trainer insists on writing.

    `memory_limit`, in GiB, is what a smaller GPU would have, of which training may take all.
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
    precision = check_machine(recipe, strategy)
    check_fit(recipe, strategy)
    quiet_other_ranks()
    arguments = training_arguments(recipe, precision, strategy, bench_config.folder)
    start_engine(strategy)
    embedded = recipe.model == EMBEDDED_MODEL
    config = models_embedded.embedded_config() if embedded else model_config(recipe.model)
    base = random_base(config, precision, arguments.device)
    if torch.cuda.is_available():  # what the building needed is no part of training
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if bench_config.memory_limit:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, bench_config.memory_limit * 2**30 / total))
    tokenizer = models_embedded.build_tokenizer([""])
    trainable = make_trainable(base, tokenizer, recipe, precision)
    pairs = synthetic_pairs(config.vocab_size, recipe.max_length, recipe.seed)
    linears = trainable.linear_parameters
    return Setup(recipe, strategy, precision, arguments, trainable.model, linears, tokenizer, pairs)


def fast_path(setup: Setup, packs: PackedDataset) -> FastPath:
    """Let the policy choose, as train.py does."""
    return set_up_fast_path(setup.model, setup.recipe, setup.precision, setup.strategy, setup.arguments, packs)


def packs_of(setup: Setup) -> PackedDataset:
    """The documents as the recipe packs them."""
    return pack(setup.pairs, setup.recipe, setup.recipe.global_batch_size)


def measured(setup: Setup, watch: Stopwatch, path: FastPath, epoch_tokens: int, **more: Any) -> dict[str, Any]:
    """The row of a baseline: speed, memory, and the FLOPs a token that its products took, recomputed ones too."""
    linears, layers = setup.linears, int(setup.model.config.num_hidden_layers)
    recomputed = path.recomputed if path.active else layers * (setup.recipe.recompute != "none")
    flops = this_gpu.flops_per_token(linears, setup.recipe.method == "full") + 2.0 * linears * recomputed / layers
    flops -= path.skipped_flops
    allocated = this_gpu.peak_memory_bytes()
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
