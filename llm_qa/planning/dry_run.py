"""What a recipe would do, before any weight is read: parameters, tokens, steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

import torch
from transformers import AutoModelForCausalLM

from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe
from llm_qa.console import UserError, counted, format_table, say
from llm_qa.data.chat import choose_prompt
from llm_qa.data.documents import Passage, load_passages
from llm_qa.data.packing import PackedDataset, encode_as_given, tokenize_records
from llm_qa.data.plain_prompt import context_text
from llm_qa.data.preparation import prepared_folder
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.records import QARecord
from llm_qa.data.references import before
from llm_qa.data.splits import Split, open_split
from llm_qa.language import tr
from llm_qa.models import embedded
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.loading import load_tokenizer
from llm_qa.models.lora import add_lora, parameter_counts, trainable_report
from llm_qa.models.precision import check_fp8_units, gpu_capability
from llm_qa.models.references import references_of
from llm_qa.models.registry import model_config
from llm_qa.models.shapes import SHAPES
from llm_qa.planning.figures import FORMAT_CHARACTERS, TOKENS_PER_CHARACTER
from llm_qa.planning.footprint import Work, peak_by_part
from llm_qa.planning.known_gpus import find_gpu
from llm_qa.planning.memory import GPU_COUNTS, Sizes, sharing_rows
from llm_qa.planning.nearest import nearest_that_fits
from llm_qa.planning.this_gpu import device_name
from llm_qa.training.memory_check import (
    Layers,
    check_memory,
    free_host_bytes,
    gpu_total_bytes,
    largest_micro_batch,
    takes_plain_path,
)
from llm_qa.training.strategy import Strategy, accumulation_steps, micro_batch_size

CPU_LIMIT = 1_000_000_000  # parameters; a larger model on a CPU is a mistake, not a wish


def check_hardware(recipe: Recipe, capability: tuple[int, int] | None) -> None:
    """Refuse a large known model on a machine without a GPU, naming what works there, and fp8 without fp8 units."""
    shape = SHAPES.get(recipe.model)
    if capability is None and shape is not None and shape.parameters > CPU_LIMIT:
        raise UserError(
            tr(
                "{model} has {billions:.1f} billion parameters and needs a CUDA GPU, and torch "
                "sees none here: the recipe scripts/recipes/tiny.yaml trains a small practice "
                "model here instead, and --dry-run shows what this recipe would do.",
                model=recipe.model,
                billions=shape.parameters / 1000000000.0,
            )
        )
    check_fp8_units(recipe, capability)


def check_context(recipe: Recipe) -> None:
    """Refuse documents longer than the model has positions for; its config alone is read.

    Longer ones would train until the first of them, and end there. Packs may be longer: positions begin anew with
    each document.
    """
    if recipe.model == EMBEDDED_MODEL:
        context: int | None = embedded.CONTEXT
    else:
        context = getattr(model_config(recipe.model).get_text_config(), "max_position_embeddings", None)
    if context and recipe.max_length > context:  # None: a model without a limit of its own
        raise UserError(
            tr(
                "--max-length {max_length} is longer than the context of {model}, {context} "
                "tokens: set it to {context} or less.",
                max_length=recipe.max_length,
                model=recipe.model,
                context=context,
            )
        )


def meta_model(recipe: Recipe) -> torch.nn.Module:
    """The recipe's model at its true shapes on the meta device (no memory, no weights), LoRA on it if asked."""
    config = embedded.embedded_config() if recipe.model == EMBEDDED_MODEL else model_config(recipe.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        return add_lora(model, recipe) if recipe.method == "lora" else model


def sizes_of(model: torch.nn.Module, recipe: Recipe) -> Sizes:
    """Weights in linear layers, in everything else, and of those that train."""
    linear = sum(layer.weight.numel() for name, layer in linear_layers(model).items() if ".lora_" not in name)
    total, trained = parameter_counts(model)
    return Sizes(linear, total - linear - (trained if recipe.method == "lora" else 0), trained)


def shapes_of(recipe: Recipe) -> torch.nn.Module | None:
    """The recipe's model on the meta device; None for the embedded one and where its shapes cannot be known."""
    if recipe.model == EMBEDDED_MODEL:
        return None
    try:
        return meta_model(recipe)
    except Exception:  # whatever is wrong with a checkpoint is said when it is loaded
        return None


def layers_of(model: torch.nn.Module, recipe: Recipe, strategy: Strategy) -> Layers:
    """The shapes of a model that its activations depend on, and its path on this machine's GPU."""
    config = model.config.get_text_config()
    plain = takes_plain_path(recipe, config.model_type, gpu_capability(), strategy.zero_stage)
    return Layers(config.num_hidden_layers, config.hidden_size, config.vocab_size, plain)


def check_fit(recipe: Recipe, strategy: Strategy, *, auto: bool = False) -> None:
    """Refuse what is too large for the GPU's or the machine's memory; of the model nothing is read but its shapes.

    With `auto` its micro-batch may still become smaller.
    """
    model, gpu, host = shapes_of(recipe), gpu_total_bytes(), free_host_bytes()
    if model is None:
        return
    try:
        check_memory(
            recipe, sizes_of(model, recipe), layers_of(model, recipe, strategy), strategy, gpu, host, auto=auto
        )
    except UserError as error:
        nearest = nearest_that_fits(recipe, strategy, find_gpu(device_name()), gpu, host) if gpu else ""
        if not nearest:
            raise
        raise UserError(f"{str(error).removesuffix('.')}; {nearest}") from error


def widest_pass(recipe: Recipe, strategy: Strategy) -> Recipe:
    """Under ZeRO-3 on GPUs: the recipe with the largest micro-batch that fits, printed; its updates are the same."""
    gpu, model = gpu_total_bytes(), shapes_of(recipe) if strategy.zero_stage == 3 else None
    if gpu is None or model is None:
        return recipe
    size = largest_micro_batch(recipe, sizes_of(model, recipe), layers_of(model, recipe, strategy), strategy, gpu)
    if size != recipe.micro_batch_size:
        say(
            tr(
                "micro_batch_size {size} instead of {micro_batch_size}: it should fit, and fewer passes "
                "an update gather the weights less often (--auto-micro-batch)",
                size=size,
                micro_batch_size=recipe.micro_batch_size,
            )
        )
    return dataclasses.replace(recipe, micro_batch_size=size)


def count_packs(
    recipe: Recipe, records: Collection[QARecord] | Split, passages: Sequence[Passage] = ()
) -> tuple[int, int, str]:
    """(packs, real tokens, how they were counted) of one epoch; `passages` are of the user's documents."""
    try:
        if recipe.model == EMBEDDED_MODEL:
            tokenizer = load_tokenizer(embedded.embedded_model())
        else:
            tokenizer = load_tokenizer(recipe.model, only_local=True)
        choose_prompt(tokenizer, recipe.prompt, recipe.system_prompt)
    except UserError:
        lengths = estimated_lengths(recipe, records, passages)
        tokens = math.ceil(sum(lengths))
        packs = math.ceil(tokens / recipe.pack_length) if recipe.pack_length else len(lengths)
        how = tr("estimated at {rate} tokens a character, as the tokenizer is not at hand", rate=TOKENS_PER_CHARACTER)
        return packs, tokens, how
    encode = encode_as_given
    if recipe.retrieval:
        encode = references_of(list(records), recipe, passages).encode
    pairs, _ = tokenize_records(tokenizer, records, recipe.max_length, encode=encode)
    return len(PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed)), len(pairs.tokens), tr("counted")


def estimated_lengths(
    recipe: Recipe, records: Collection[QARecord] | Split, passages: Sequence[Passage]
) -> list[float]:
    """Tokens of every pair by its characters, with what stands before the question: references too, as many as fit."""
    references = references_of(list(records), recipe, passages) if recipe.retrieval else None
    lengths = []
    for record in records:
        for question in record.questions:
            context = record.given
            if references:
                context = before(references.nearest(question, recipe.retrieval, beside=[record]), context)
            asked = len(context_text(context)) + len(question) + FORMAT_CHARACTERS
            lengths += [TOKENS_PER_CHARACTER * (asked + len(answer)) for answer in record.answers]
    return [min(length, recipe.max_length) for length in lengths]


def peak_lines(recipe: Recipe, model: torch.nn.Module, sizes: Sizes, strategy: Strategy) -> list[str]:
    """Peak memory of a GPU on the fast path, by how many layers are recomputed; [] where no formula was measured."""
    config = model.config.get_text_config()
    if config.model_type != "gpt_neox" or recipe.fast == "off" or not recipe.pack_length or strategy.zero_stage == 3:
        return []
    layers, tokens = config.num_hidden_layers, micro_batch_size(recipe, strategy.processes) * recipe.pack_length
    recomputed = {"none": [0], "all": [layers], "auto": [0, layers // 2, layers]}[recipe.recompute]
    rows = []
    for count in recomputed:
        work = Work(layers, config.hidden_size, config.vocab_size, tokens, count)
        peak = sum(peak_by_part(recipe, sizes, work, strategy.zero_stage, strategy.processes).values())
        rows.append([tr("{count:,} of {layers:,}", count=count, layers=layers), f"{peak / 2**30:,.1f}"])
    return [
        tr(
            "peak GiB of a GPU on the fast path, by formulas fitted to runs of the polyglot-ko models (other models "
            "and the CUDA context, about half a GiB, are not in the fit):"
        ),
        format_table([tr("layers recomputed"), "GiB"], rows),
    ]


def gpus_in_words(count: int) -> str:
    """'1 GPU', '2 GPUs'."""
    return tr("{count} GPUs", count=count) if count > 1 else tr("1 GPU")


def dry_run(
    recipe: Recipe, data: list[str] | None, strategy: Strategy, preparation: PreparationOptions | None = None
) -> str:
    """The text that `--dry-run` prints: parameters by module, tokens per update, updates an epoch."""
    check_context(recipe)
    folder = prepared_folder(data, preparation)
    records = open_split(folder, "train")
    model = meta_model(recipe)
    by_module: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not name.partition(".lora_")[1]:
            module = name.replace(".base_layer", "").rpartition(".")[0].rpartition(".")[2]
            by_module[module] = by_module.get(module, 0) + parameter.numel()
    sizes = sizes_of(model, recipe)
    packs, tokens, how = count_packs(recipe, records, load_passages(folder))
    steps = math.ceil(packs / recipe.global_batch_size)
    rows = [[name, f"{count:,}"] for name, count in sorted(by_module.items(), key=lambda item: -item[1])]
    return "\n".join(
        [
            tr(
                "model {model}, base {base}, method {method}",
                model=recipe.model,
                base=recipe.base_precision,
                method=recipe.method,
            ),
            format_table([tr("base module"), tr("parameters")], [*rows, [tr("all"), f"{sum(by_module.values()):,}"]]),
            trainable_report(model),
            tr(
                "tokens per update: {tokens:,.0f} real tokens in {sequences} ({micro} per forward pass, {steps}) on "
                "{strategy}",
                tokens=tokens / packs * min(recipe.global_batch_size, packs),
                sequences=counted(recipe.global_batch_size, "sequence"),
                micro=micro_batch_size(recipe, strategy.processes),
                steps=counted(accumulation_steps(recipe, strategy.processes), "gradient accumulation step"),
                strategy=strategy,
            ),
            tr(
                "updates an epoch: {steps:,} ({tokens:,} tokens in {packs:,} packs of {records:,} records; {how})",
                steps=steps,
                tokens=tokens,
                packs=packs,
                records=len(records),
                how=how,
            ),
            tr("GiB of weights, gradients and optimizer per GPU / sent by each GPU per update (activations on top):"),
            format_table(["", *map(gpus_in_words, GPU_COUNTS)], sharing_rows(recipe, sizes)),
            *peak_lines(recipe, model, sizes, strategy),
            tr("dry run: no weights were read or written"),
        ]
    )
