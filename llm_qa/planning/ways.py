"""Every way to train a known model on given GPUs: whether it fits, how fast it is, and the command (no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llm_qa.config.recipe import Recipe, load_recipe, recipe_flags
from llm_qa.language import later, tr
from llm_qa.models.shapes import SHAPES, Shape
from llm_qa.planning.footprint import (
    CACHED,
    LAYER_INPUT,
    MOST_TOKENS,
    Work,
    copy_fits,
    least_peak,
    peak_by_part,
    usable_bytes,
)
from llm_qa.planning.known_gpus import GPUS, Gpu
from llm_qa.planning.measured import Measured
from llm_qa.planning.memory import Sizes, checkpoint_bytes, host_bytes, of_recipe, traffic_of_update, weight_bytes
from llm_qa.planning.speed import Products, tokens_per_second

RECIPES = Path("scripts/recipes")
# The share of the usable memory up to which training all weights is taken to recompute nothing: a choice by which 5.8B
# does so on an H200 and 12.8B recomputes every layer, as was seen.
ALL_WEIGHTS_USABLE = 0.9
CHECKPOINTS = 2  # that a run keeps (save_total_limit)
STAGE = {"one": 0, "ddp": 0, "zero2": 2, "zero3": 3}
TARGET = {"one": "train", "ddp": "train-ddp", "zero2": "train-zero2", "zero3": "train-zero3"}
LABEL = {"one": later("one GPU"), "ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
OFFLOADED = {"optimizer": later("optimizer offload"), "all": later("full offload")}  # both under ZeRO-3


@dataclass(frozen=True)
class Way:
    """A recipe, flags that change it, and the engine with its offload ("", "optimizer" or "all")."""

    name: str
    recipe: str
    flags: tuple[str, ...]
    engine: str
    offload: str = ""

    @property
    def where(self) -> str:
        """The engine as the table names it."""
        return tr(OFFLOADED.get(self.offload, LABEL[self.engine]))


@dataclass(frozen=True)
class Job:
    """What is to be trained on: a known model's name, the GPU, GPUs a machine, machines, tokens, hours a session."""

    model: str
    gpu: Gpu
    gpus: int
    machines: int
    tokens: int  # of an epoch
    epochs: float
    hours: float | None = None  # that a session may last
    data: str = "train.csv"

    @property
    def all_gpus(self) -> int:
        """GPUs of all machines."""
        return self.gpus * self.machines


@dataclass(frozen=True)
class Plan:
    """A way on paper. GiB of each GPU by part and usable; times in hours."""

    way: Way
    parts: dict[str, float]
    usable: float
    recomputed: int
    layers: int
    micro_batch: int
    host_gib: float  # of each machine's memory
    disk_gib: float  # of two checkpoints and the result
    tokens_per_second: float
    epoch_hours: float
    total_hours: float
    sessions: int | None
    updates: int  # in all
    epochs: float
    global_batch_size: int
    command: str

    @property
    def gib(self) -> float:
        """Peak memory of a GPU without the CUDA context."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether that is usable on the GPU."""
        return self.gib <= self.usable

    @property
    def lacking(self) -> float:
        """GiB of a GPU that are missing; below 0 those that stay."""
        return self.gib - self.usable


def ways(gpu: Gpu, gpus: int) -> Iterator[Way]:
    """The ways that a GPU's units and a number of GPUs allow, those that need least memory last."""
    engines = ("one",) if gpus == 1 else ("ddp", "zero2", "zero3")
    whole = engines[0]
    if gpu.capability < (8, 0):
        yield from (Way("QLoRA nf4", "qlora_12.8b_t4x2", (), engine) for engine in _with_one(engines[:2]))
        return
    yield from (Way("QLoRA nf4", "qlora_12.8b", (), engine) for engine in _with_one(engines))
    if gpu.fp8:
        for engine in engines[:2]:  # under ZeRO-3 products are in 16 bits anyway
            yield Way("QLoRA nf4 bf16", "qlora_12.8b", ("--compute-dtype", "bf16"), engine)
        yield Way("LoRA fp8", "lora_12.8b", ("--base-precision", "fp8"), whole)
    yield Way("LoRA 16-bit", "lora_12.8b", (), whole)
    if gpus > 1:
        yield Way("LoRA 16-bit", "lora_12.8b", (), "zero3")
    yield Way("full", "full_12.8b", (), whole)
    if gpus > 1:
        yield Way("full", "full_12.8b_zero3", (), "zero3")
    for offload in ("optimizer", "all"):
        yield Way("full", "full_12.8b", ("--optim", "adamw_torch"), "zero3", offload)


def _with_one(engines: tuple[str, ...]) -> tuple[str, ...]:
    """One GPU of several stands in the table too: what the others add can be read off."""
    return engines if engines[0] == "one" else ("one", *engines)


def sizes_of(shape: Shape, recipe: Recipe) -> Sizes:
    """Weights of a GPT-NeoX in linear layers, in all else, and of those that train; LoRA is on all four linears."""
    linear = shape.layers * (4 * shape.d_model**2 + 2 * shape.d_model * shape.d_ff)
    if recipe.method == "full":
        return Sizes(linear, shape.parameters - linear, shape.parameters)
    lora = shape.layers * recipe.lora_r * (8 * shape.d_model + 2 * shape.d_ff)
    return Sizes(linear, shape.parameters - linear, lora)


def in_fp8(recipe: Recipe, sizes: Sizes, gpu: Gpu, engine: str) -> bool:
    """Whether frozen weights meet fp8 units and are not gathered; of 16-bit ones a copy must fit into half the rest."""
    if not gpu.fp8 or engine == "zero3" or recipe.method == "full" or recipe.compute_dtype not in ("auto", "fp8"):
        return False
    free = usable_bytes(gpu.gib * 2**30) - weight_bytes(recipe, sizes)
    return recipe.base_precision in ("nf4", "fp8") or copy_fits(CACHED * sizes.linear, free)


def products_of(recipe: Recipe, shape: Shape, sizes: Sizes, gpu: Gpu, engine: str, recomputed: int) -> Products:
    """How the recipe multiplies, with so many layers recomputed."""
    if gpu.capability < (8, 0):
        kind = "plain path"
    elif recipe.method == "full":
        kind = "all weights"
    else:
        kind = "fp8" if in_fp8(recipe, sizes, gpu, engine) else "fp16"
    return Products(kind, sizes.linear, recomputed / shape.layers, shape.d_model)


def all_plans(job: Job) -> list[Plan]:
    """A plan for every way, in the order of `ways`."""
    return [plan(job, way) for way in ways(job.gpu, job.all_gpus)]


def plan(job: Job, way: Way) -> Plan:
    """The way with the micro-batch and the recomputation that are fastest; those that need least where none fits."""
    if way.engine == "one":
        job = replace(job, gpus=1, machines=1)
    flags = [*way.flags, *(["--model", job.model] if job.model != "EleutherAI/polyglot-ko-12.8b" else [])]
    recipe = load_recipe(RECIPES / f"{way.recipe}.yaml", recipe_flags(flags))
    if recipe.global_batch_size % job.all_gpus:
        batch = -(-recipe.global_batch_size // job.all_gpus) * job.all_gpus
        recipe = replace(recipe, global_batch_size=batch)
        flags += ["--global-batch-size", str(batch)]
    shape, sizes = SHAPES[job.model], sizes_of(SHAPES[job.model], recipe)
    usable = usable_bytes(job.gpu.gib * 2**30)
    share = recipe.global_batch_size // job.all_gpus
    sharded = way.engine == "zero3" or job.gpu.capability < (8, 0)
    counts = [shape.layers] if sharded else range(shape.layers + 1)
    if recipe.method == "full" and not sharded:
        counts = [0, shape.layers]
    best: Plan | None = None
    least: tuple[dict[str, float], Work] | None = None
    most = max(1, min(share, MOST_TOKENS // recipe.pack_length))
    shared = (STAGE[way.engine], job.all_gpus, way.offload)
    for micro in (size for size in range(most, 0, -1) if share % size == 0):
        for count in counts:
            work = _work(job, way, recipe, shape, sizes, micro, count)
            parts = peak_by_part(recipe, sizes, work, *shared)
            # Where all weights train and nothing is recomputed the fast path keeps more free.
            room = usable if recipe.method == "lora" or count else ALL_WEIGHTS_USABLE * usable
            if sum(parts.values()) <= room:
                found = _plan(job, way, recipe, sizes, flags, parts, work)
                if best is None or found.tokens_per_second > best.tokens_per_second:
                    best = found
                break
        if best and (sharded or not best.recomputed):
            return best
        parts = least_peak(recipe, sizes, work, *shared)
        if least is None or sum(parts.values()) < sum(least[0].values()):
            least = parts, replace(work, inputs_on_host=not sharded)
    assert least
    return best or _plan(job, way, recipe, sizes, flags, *least)


def _work(job: Job, way: Way, recipe: Recipe, shape: Shape, sizes: Sizes, micro: int, recomputed: int) -> Work:
    """A pass of `micro` packs."""
    return Work(
        shape.layers,
        shape.d_model,
        shape.vocabulary,
        micro * recipe.pack_length,
        recomputed,
        # Where all weights train and all layers are recomputed, their inputs go to the machine's memory.
        inputs_on_host=recipe.method == "full" and STAGE[way.engine] == 0 and recomputed == shape.layers,
        copied=recipe.base_precision == "16bit" and in_fp8(recipe, sizes, job.gpu, way.engine),
        passes=recipe.global_batch_size // (micro * job.all_gpus),
        plain=job.gpu.capability < (8, 0),
    )


def _plan(
    job: Job, way: Way, recipe: Recipe, sizes: Sizes, flags: list[str], parts: dict[str, float], work: Work
) -> Plan:
    shape, gpus, stage = SHAPES[job.model], job.all_gpus, STAGE[way.engine]
    update, micro = recipe.global_batch_size * recipe.pack_length, work.tokens // recipe.pack_length
    products = products_of(recipe, shape, sizes, job.gpu, way.engine, work.recomputed)
    traffic = traffic_of_update(recipe, sizes, stage, gpus, work.passes)
    speed = tokens_per_second(
        job.gpu, gpus, way.engine, products, traffic, update, offload=way.offload, machines=job.machines
    )
    epoch = job.tokens / speed / 3600
    total = epoch * job.epochs
    host = host_bytes(recipe, sizes, way.offload, job.gpus, job.machines)
    if work.inputs_on_host:
        host += job.gpus * LAYER_INPUT * work.layers * work.tokens * work.d_model
    trained = of_recipe(recipe, stage)
    saved = CHECKPOINTS * checkpoint_bytes(trained.weight, recipe.training.get("optim", ""), stage)
    last = 4 * sizes.trained if recipe.method == "lora" else 2 * (sizes.linear + sizes.other)
    if micro != recipe.micro_batch_size:
        flags = [*flags, "--micro-batch-size", str(micro)]
    return Plan(
        way,
        {name: count / 2**30 for name, count in parts.items()},
        usable_bytes(job.gpu.gib * 2**30) / 2**30,
        work.recomputed,
        shape.layers,
        micro,
        host / 2**30,
        (saved * sizes.trained + last) / 2**30,
        speed,
        epoch,
        total,
        math.ceil(total / job.hours) if job.hours else None,
        math.ceil(math.ceil(job.tokens / recipe.pack_length) / recipe.global_batch_size * job.epochs),
        job.epochs,
        recipe.global_batch_size,
        _command(job, way, flags),
    )


def _command(job: Job, way: Way, flags: list[str]) -> str:
    target = TARGET[way.engine] + {"": "", "optimizer": "-optimizer-offload", "all": "-offload"}[way.offload]
    parts = ["make", target]
    parts += [f"NUM_GPUS={job.gpus}"] if way.engine != "one" else []
    parts += [f"NUM_MACHINES={job.machines}", "MACHINE_RANK=0", "MAIN_IP=ADDRESS"] if job.machines > 1 else []
    parts += [f"RECIPE=scripts/recipes/{way.recipe}.yaml", f"DATA={job.data}", f"RUN=runs/{way.recipe}"]
    return " ".join([*parts, *([f'ARGS="{" ".join(flags)}"'] if flags else [])])


def best_of(plans: list[Plan]) -> Plan | None:
    """The fastest plan that fits, one with offload last; LoRA's variants differ little in what they learn."""
    fitting = [plan for plan in plans if plan.fits]
    return max(fitting, key=lambda plan: (not plan.way.offload, plan.tokens_per_second), default=None)


def measured_recipe(row: Measured) -> Recipe:
    """The recipe of a run that was measured, with its flags and model."""
    return load_recipe(RECIPES / f"{row.recipe}.yaml", recipe_flags([*row.flags, "--model", row.model]))


def predicted(row: Measured) -> tuple[float, float]:
    """(GiB a GPU, tokens a second of all GPUs) by the formulas for a run that was measured."""
    recipe, shape = measured_recipe(row), SHAPES[row.model]
    sizes, stage = sizes_of(shape, recipe), STAGE[row.engine]
    copied = recipe.base_precision == "16bit" and row.kind == "fp8"
    work = Work(shape.layers, shape.d_model, shape.vocabulary, row.tokens, row.recomputed, row.inputs_on_host, copied)
    parts = peak_by_part(recipe, sizes, replace(work, passes=row.passes), stage, row.gpus, row.offload)
    products = Products(row.kind, sizes.linear, row.recomputed / shape.layers, shape.d_model)
    traffic = traffic_of_update(recipe, sizes, stage, row.gpus, row.passes)
    tokens = row.passes * row.tokens * row.gpus
    gpu = GPUS[row.gpu]
    speed = tokens_per_second(gpu, row.gpus, row.engine, products, traffic, tokens, offload=row.offload)
    return sum(parts.values()) / 2**30, speed
