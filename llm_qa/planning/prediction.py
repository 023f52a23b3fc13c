"""What the formulas of `make plan` say of the very run that is about to start."""

from __future__ import annotations

from transformers import TrainingArguments

from llm_qa.config.recipe import Recipe
from llm_qa.console import say
from llm_qa.language import tr
from llm_qa.models.fast.choice import FastPath
from llm_qa.models.registry import known_shape
from llm_qa.planning.calibration import FILE, calibrated
from llm_qa.planning.figures import Figures
from llm_qa.planning.footprint import Work, peak_by_part
from llm_qa.planning.known_gpus import Gpu, find_gpu
from llm_qa.planning.memory import traffic_of_update
from llm_qa.planning.speed import Products, tokens_per_second, trust
from llm_qa.planning.this_gpu import device_name
from llm_qa.planning.ways import sizes_of
from llm_qa.training.data_sets import DataSets, count_updates
from llm_qa.training.strategy import Strategy, accumulation_steps, micro_batch_size


def gpu_here() -> Gpu | None:
    """This machine's GPU, as fast as `make plan ARGS=--calibrate` found it to be, if it did; None for an unknown one.

    UserError where what --calibrate wrote is damaged.
    """
    gpu = find_gpu(device_name())
    return calibrated(gpu, FILE) if gpu else None


def predict_run(
    recipe: Recipe, strategy: Strategy, path: FastPath, data: DataSets, arguments: TrainingArguments, gpu: Gpu | None
) -> Figures | None:
    """The figures of a run on `gpu`s, said in a line; None where no formula holds (`predict`)."""
    _, epochs = count_updates(arguments, data.train, recipe)
    figures = predict(recipe, strategy, path, gpu, epochs * len(data.pairs.tokens))
    if figures and gpu:
        say(
            tr(
                "predicted: {figures}, without loading, validation and saving (times {trust})",
                figures=figures,
                trust=trust(gpu),
            )
        )
    return figures


def predict(recipe: Recipe, strategy: Strategy, path: FastPath, gpu: Gpu | None, trained: float) -> Figures | None:
    """Peak memory, tokens/s and time of a run over `trained` tokens on `gpu`s with the path that was chosen.

    None where no formula holds: for unknown GPUs and models, LoRA on some linear layers alone (`lora_targets`),
    padded pairs, offload, and the plain path with nothing recomputed.
    """
    shape = known_shape(recipe.model)
    if gpu is None or shape is None or shape.model_type != "gpt_neox" or not recipe.pack_length or recipe.lora_targets:
        return None
    if strategy.offload_optimizer or strategy.offload_weights or (not path.active and recipe.recompute == "none"):
        return None
    sizes, gpus, stage = sizes_of(shape, recipe), strategy.processes, strategy.zero_stage
    passes = accumulation_steps(recipe, gpus)
    tokens = micro_batch_size(recipe, gpus) * recipe.pack_length
    recomputed = path.recomputed if path.active else shape.layers
    copied = path.fp8_products and recipe.base_precision == "16bit"
    shapes = (shape.layers, shape.d_model, shape.vocabulary, tokens, recomputed)
    work = Work(*shapes, path.inputs_on_host, copied, passes, plain=not path.active)
    parts = peak_by_part(recipe, sizes, work, stage, gpus)
    if not path.active:
        kind = "plain path"
    elif recipe.method == "full":
        kind = "all weights"
    else:
        kind = "fp8" if path.fp8_products else "fp16"
    engine = f"zero{stage}" if stage else "ddp" if gpus > 1 else "one"
    products = Products(kind, sizes.linear, recomputed / shape.layers, shape.d_model)
    traffic = traffic_of_update(recipe, sizes, stage, gpus, passes)
    speed = tokens_per_second(gpu, gpus, engine, products, traffic, gpus * passes * tokens)
    return Figures(sum(parts.values()), speed, trained / speed)
