"""From a base model to one that is ready to train: special tokens, LoRA, the fast path. The benchmark uses the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe
from llm_qa.console import say
from llm_qa.data.chat import choose_prompt
from llm_qa.data.packing import PackedDataset
from llm_qa.language import tr
from llm_qa.models.embedded import embedded_model
from llm_qa.models.fast.choice import FastPath
from llm_qa.models.fast.plan import choose_fast_path
from llm_qa.models.left_out import left_out_report
from llm_qa.models.loading import align_special_tokens, check_tokenizer_fits, load_base, load_tokenizer
from llm_qa.models.lora import add_lora, linear_parameters, parameter_counts, trainable_report
from llm_qa.models.precision import Precision, gpu_capability
from llm_qa.planning.footprint import gradients_replace_activations
from llm_qa.training.out_of_memory import memory_for_loading
from llm_qa.training.strategy import Strategy
from llm_qa.training.trainer import use_fast_path


@dataclass(frozen=True)
class TrainableModel:
    """A model whose trainable parameters require gradients."""

    model: PreTrainedModel | PeftModel
    linear_parameters: int  # weights of the base that take part in matrix products on every token
    total_parameters: int
    trainable_parameters: int


def base_source(recipe: Recipe) -> str:
    """Where the base model and its tokenizer are read from: the recipe's model, or the embedded one's folder."""
    return str(embedded_model()) if recipe.model == EMBEDDED_MODEL else recipe.model


def load_tokenizer_for(recipe: Recipe, source: str) -> tuple[PreTrainedTokenizerFast, Literal["plain", "chat"]]:
    """The base's tokenizer with the recipe's prompt format in it, and which that is: plain or chat."""
    tokenizer = load_tokenizer(source)
    return tokenizer, choose_prompt(tokenizer, recipe.prompt, recipe.system_prompt)


def load_trainable(source: str, tokenizer, recipe: Recipe, precision: Precision, strategy: Strategy) -> TrainableModel:
    """Load the base from a folder or hub name and make it trainable, reporting its precision and what trains.

    UserError for a tokenizer of another model; Failed, with what helps, where the model does not fit in memory.
    """
    say(tr("model: {model}, {why}", model=recipe.model, why=precision.why))
    with memory_for_loading(recipe):
        base = load_base(source, precision, on_gpu=strategy.zero_stage < 3)
        check_tokenizer_fits(tokenizer, base)
        trainable = make_trainable(base, tokenizer, recipe, precision)
    say("\n".join([trainable_report(trainable.model), *left_out_report(trainable.model, recipe, precision)]))
    return trainable


def make_trainable(base: PreTrainedModel, tokenizer, recipe: Recipe, precision: Precision) -> TrainableModel:
    """Give a base the tokenizer's special tokens and, where the recipe says so, LoRA layers."""
    align_special_tokens(base, tokenizer)
    in_products = linear_parameters(base)
    model = add_lora(base, recipe, precision.trains_in) if recipe.method == "lora" else base
    return TrainableModel(model, in_products, *parameter_counts(model))


def set_up_fast_path(
    model: torch.nn.Module,
    recipe: Recipe,
    precision: Precision,
    strategy: Strategy,
    arguments: TrainingArguments,
    train_set: PackedDataset,
) -> FastPath:
    """Choose the fast path for passes of the largest size, install it, and report it.

    `arguments` lose Trainer's activation checkpointing where the fast path recomputes by itself.
    """
    rows = arguments.per_device_train_batch_size
    path = choose_fast_path(
        model,
        recipe,
        precision,
        tokens=rows * train_set.capacity,
        max_label_tokens=rows * train_set.max_label_tokens,
        zero_stage=strategy.zero_stage,
        capability=gpu_capability(),
        replaced=gradients_replace_activations(recipe, arguments.gradient_accumulation_steps, strategy.processes),
        processes=strategy.processes,
    )
    use_fast_path(arguments, path)
    say(path.report)
    return path
