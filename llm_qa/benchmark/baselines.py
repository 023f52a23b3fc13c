"""Who is measured: this project, also in other precisions, its plain path, an explicit loop, the original, TRL.

All train the same random weights on the same documents. Each is a function of a Trial that makes `warmup + steps`
updates and returns what it measured; each runs in a process of its own, so that memory and start-up are its own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import Trainer, default_data_collator
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llm_qa.benchmark.config import BenchmarkConfig, fast_path, measured, packs_of, set_up
from llm_qa.benchmark.stopwatch import Stopwatch
from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.data.packing import IGNORED, TokenizedPairs, count_real_tokens, pack_collator
from llm_qa.models.fast.choice import FastPath
from llm_qa.training.callbacks.logging import RealTokens
from llm_qa.training.callbacks.non_finite import StopOnNonFinite
from llm_qa.training.optimizer import choose_optimizer
from llm_qa.training.strategy import engine_report
from llm_qa.training.trainer import build_trainer

ORIGINAL_LENGTH = 128  # tokens; every pair padded or cut to it
ORIGINAL_RECIPE = {
    "fast": "off",
    "double_quant": True,
    "lora_r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "max_length": 1024,
    "pack_length": 0,
    "loss_on": "everything",
    "micro_batch_size": 8,
    "global_batch_size": 32,
}


def ours(bench_config: BenchmarkConfig) -> dict[str, Any]:
    """The recipe as train.py trains it."""
    setup = set_up(bench_config)
    packs, watch = packs_of(setup), Stopwatch(bench_config.warmup, bench_config.steps)
    path = fast_path(setup, packs)
    callbacks = [RealTokens(), StopOnNonFinite(), watch, *([bench_config.trace] if bench_config.trace else [])]
    trainer = build_trainer(setup.model, setup.tokenizer, setup.arguments, packs, None, callbacks)
    trainer.train()
    tokens = len(setup.pairs.tokens)
    full = round(packs.efficiency, 4)
    return measured(setup, watch, path, tokens, engine=engine_report(trainer), packs_full=full)


def bf16(bench_config: BenchmarkConfig) -> dict[str, Any]:
    """The same without products in fp8."""
    return ours(replace(bench_config, recipe=replace(bench_config.recipe, compute_dtype="bf16"), trace=None))


def fp8_base(bench_config: BenchmarkConfig) -> dict[str, Any]:
    """The same on a base that is kept in fp8."""
    if bench_config.recipe.method == "full":
        raise UserError("Weights in fp8 are frozen and this recipe trains all: leave fp8-base out of --baselines.")
    return ours(
        replace(
            bench_config, recipe=replace(bench_config.recipe, base_precision="fp8", compute_dtype="auto"), trace=None
        )
    )


def without_fast_path(recipe: Recipe) -> Recipe:
    """The recipe with --fast off; products in fp8 are the fast path's."""
    compute = "auto" if recipe.compute_dtype == "fp8" else recipe.compute_dtype
    return replace(recipe, fast="off", compute_dtype=compute)


def plain(bench_config: BenchmarkConfig) -> dict[str, Any]:
    """The same with transformers and peft as they are: --fast off, and every layer recomputed unless none is."""
    return ours(replace(bench_config, recipe=without_fast_path(bench_config.recipe), trace=None))


def loop(bench_config: BenchmarkConfig) -> dict[str, Any]:
    """The recipe in an explicit Accelerator loop: what Trainer costs."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    setup = set_up(bench_config)
    packs, watch = packs_of(setup), Stopwatch(bench_config.warmup, bench_config.steps)
    path = fast_path(setup, packs)
    arguments = setup.arguments
    if arguments.gradient_checkpointing:
        setup.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(
        mixed_precision=setup.precision.autocast or "no",
        cpu=not on_gpu,
        dataloader_config=DataLoaderConfiguration(non_blocking=on_gpu),
    )
    trained = [parameter for parameter in setup.model.parameters() if parameter.requires_grad]
    chosen = choose_optimizer(setup.model, arguments)
    kind, keywords = chosen or Trainer.get_optimizer_cls_and_kwargs(arguments, setup.model)
    optimizer = kind(trained, **keywords)
    loader = torch.utils.data.DataLoader(
        packs,
        batch_size=arguments.per_device_train_batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(setup.recipe.seed),
        collate_fn=pack_collator(0, packs.pack_length),
        pin_memory=torch.cuda.is_available(),
    )
    model, optimizer, loader = accelerator.prepare(setup.model.train(), optimizer, loader)
    batches, tokens = endless(loader), torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for step in range(1, bench_config.warmup + bench_config.steps + 1):
        update = [next(batches) for _ in range(arguments.gradient_accumulation_steps)]
        num_label_tokens = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in update)
        losses = []
        for batch in update:
            loss = model(**batch, use_cache=False, num_items_in_batch=num_label_tokens).loss
            accelerator.backward(loss)
            losses.append(loss.detach())
            tokens += count_real_tokens(batch["position_ids"])
        accelerator.clip_grad_norm_(trained, arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        watch.update(step, int(tokens) if watch.waits_for(step) else 0)
    watch.losses.append(float(sum(losses)))
    return measured(setup, watch, path, len(setup.pairs.tokens))


def endless(loader):
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def original_recipe(recipe: Recipe) -> Recipe:
    """What the original notebooks did with a recipe's model: fp16 autocast, 8 x 4 pairs of 128 tokens, 8-bit Adam.

    LoRA on nf4, or all weights in fp32; recomputation but for KoGPT2.
    """
    small = recipe.model.startswith("skt/kogpt2")
    values: dict[str, Any] = {
        **ORIGINAL_RECIPE,
        "base_precision": "nf4" if recipe.method == "lora" else "fp32",
        "compute_dtype": "fp16" if torch.cuda.is_available() else "auto",
        "recompute": "none" if small else "all",
        "training": {**recipe.training, "optim": "adamw_8bit", "learning_rate": 5e-5},
    }
    return replace(recipe, **values)


class PaddedPairs(torch.utils.data.Dataset):
    """Item i is pair i, cut or padded to ORIGINAL_LENGTH tokens, all with labels, as the original notebooks did."""

    def __init__(self, pairs: TokenizedPairs):
        self.pairs = pairs
        self.epoch_tokens = int(np.minimum(pairs.lengths, ORIGINAL_LENGTH).sum())

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.pairs.tokens[self.pairs.starts[index] : self.pairs.starts[index + 1]][:ORIGINAL_LENGTH]
        padding = (0, ORIGINAL_LENGTH - len(tokens))
        ids = torch.from_numpy(tokens.astype(np.int64))
        return {
            "input_ids": torch.nn.functional.pad(ids, padding),
            "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), padding),
            "labels": torch.nn.functional.pad(ids, padding, value=IGNORED),
        }


def original(bench_config: BenchmarkConfig) -> dict[str, Any]:
    """The original notebooks' recipe in today's transformers: padded pairs, reentrant checkpointing."""
    setup = set_up(replace(bench_config, recipe=original_recipe(bench_config.recipe)))
    arguments, watch, documents = (
        setup.arguments,
        Stopwatch(bench_config.warmup, bench_config.steps),
        PaddedPairs(setup.pairs),
    )
    arguments.include_num_input_tokens_seen = "non_padding"
    if setup.recipe.recompute == "all":
        arguments.gradient_checkpointing_kwargs = {"use_reentrant": True}
        setup.model.enable_input_require_grads()
    trainer = Trainer(
        setup.model,
        arguments,
        data_collator=default_data_collator,
        train_dataset=documents,
        callbacks=[watch],
    )
    run_quietly(trainer)
    how = "the original notebooks': " + ("fp16 autocast, " if torch.cuda.is_available() else "")
    path = FastPath(False, f"{how}8 x {ORIGINAL_LENGTH} padded tokens a pass, reentrant checkpointing")
    return measured(setup, watch, path, documents.epoch_tokens)


def trl(bench_config: BenchmarkConfig) -> dict[str, Any]:
    """TRL's SFTTrainer at its best: packing, flex attention (sdpa on a CPU), nothing recomputed."""
    if importlib.util.find_spec("trl") is None:
        raise UserError("TRL is not installed, so it is not measured: `pip install trl==1.16.0`, or --baselines.")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    recipe = replace(without_fast_path(bench_config.recipe), recompute="none")
    setup = set_up(replace(bench_config, recipe=recipe))
    arguments, watch = setup.arguments, Stopwatch(bench_config.warmup, bench_config.steps)
    attention = "flex_attention" if torch.cuda.is_available() else "sdpa"
    setup.model.set_attn_implementation(attention)
    rows = [setup.pairs.tokens[a:b].tolist() for a, b in zip(setup.pairs.starts, setup.pairs.starts[1:], strict=False)]
    same = ["output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16"]
    same += ["learning_rate", "optim", "logging_steps", "save_strategy", "report_to", "use_cpu", "seed"]
    config = SFTConfig(
        **{name: getattr(arguments, name) for name in same},
        gradient_checkpointing=False,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        packing=True,
        max_length=recipe.pack_length,
        pad_to_multiple_of=recipe.pack_length
        or None,  # flex attention is compiled, and tuned for a minute, for each length
    )
    trainer = SFTTrainer(
        setup.model,
        config,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=setup.tokenizer,
        callbacks=[RealTokens(), watch],
    )
    run_quietly(trainer)
    path = FastPath(False, f"TRL's SFTTrainer: packing, {attention}, nothing recomputed")
    return measured(setup, watch, path, len(setup.pairs.tokens))


def run_quietly(trainer: Trainer) -> None:
    """Train without Trainer's own bar and dictionaries."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()


BASELINES: dict[str, Callable[[BenchmarkConfig], dict[str, Any]]] = {
    "ours": ours,
    "bf16": bf16,
    "fp8-base": fp8_base,
    "plain": plain,
    "loop": loop,
    "original": original,
    "trl": trl,
}
