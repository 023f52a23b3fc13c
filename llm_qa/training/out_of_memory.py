"""Out of GPU memory: say what was used and what helps, or with --auto-micro-batch halve the micro-batch and go on.

The global batch stays what the recipe says: half the sequences per pass and twice the gradient accumulation steps. The
micro-batch that was found is stored in the run folder for later starts. Under ZeRO-3 --auto-micro-batch begins with the
largest micro-batch that should fit (planning/dry_run.py, widest_pass), because every pass gathers all weights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import Failed, StoppedEarly, say
from llm_qa.language import tr
from llm_qa.migrations import stored_file
from llm_qa.planning.this_gpu import peak_memory_bytes
from llm_qa.training.strategy import Strategy, micro_batch_size


def micro_batch_file(run_dir: str | Path) -> Path:
    """The file with the micro-batch that fits, under its name of this or of an earlier version."""
    return stored_file(run_dir, files.MICRO_BATCH)


def with_stored_micro_batch(recipe: Recipe, run_dir: str | Path) -> Recipe:
    """The recipe with the micro-batch that an earlier start of this run found to fit, which is printed."""
    if not micro_batch_file(run_dir).is_file():
        return recipe
    found = files.read_json(micro_batch_file(run_dir))
    found = found if isinstance(found, dict) else {}
    if found.get("pack_length", recipe.pack_length) != recipe.pack_length:  # sequences of another size: see rows.py
        return recipe
    found = found.get("micro_batch_size")
    if not isinstance(found, int) or not 0 < found <= recipe.global_batch_size or found == recipe.micro_batch_size:
        return recipe
    say(
        tr(
            "micro_batch_size {found} instead of {micro_batch_size}: what fits this GPU, from {path}",
            found=found,
            micro_batch_size=recipe.micro_batch_size,
            path=micro_batch_file(run_dir),
        )
    )
    return replace(recipe, micro_batch_size=found)


def smaller(recipe: Recipe, processes: int) -> int | None:
    """Half the micro-batch, or the next below that divides a process's share of the global batch; None below 1."""
    share, now = recipe.global_batch_size // processes, micro_batch_size(recipe, processes)
    return next((size for size in range(now // 2, 0, -1) if share % size == 0), None)


@contextmanager
def memory_for_loading(recipe: Recipe) -> Iterator[None]:
    """Out of memory while the model is loaded ends with one sentence, as no smaller micro-batch would help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Failed(loading_sentence(error, recipe)) from error


@contextmanager
def memory_for_training(recipe: Recipe, run_dir: Path, strategy: Strategy, *, fit: bool) -> Iterator[None]:
    """Out of memory in a forward or backward pass: see `out_of_memory`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        out_of_memory(error, recipe, run_dir, strategy, fit=fit)


def out_of_memory(error: BaseException, recipe: Recipe, run_dir: Path, strategy: Strategy, *, fit: bool) -> NoReturn:
    """Start again with half the micro-batch, or end with one sentence.

    A single process restarts itself by exec, which frees all of its memory. Several processes end, because their
    launcher must start them; the same command goes on.
    """
    half = smaller(recipe, strategy.processes)
    if not fit or half is None:
        raise Failed(sentence(error, recipe, half)) from error
    kept = {"micro_batch_size": half, "pack_length": recipe.pack_length, "because": " ".join(str(error).split())}
    files.write_json(Path(run_dir) / files.MICRO_BATCH, kept)
    again = tr(
        "{measured} micro_batch_size {half} from now on, global_batch_size {global_batch_size} as before",
        measured=measured(error),
        half=half,
        global_batch_size=recipe.global_batch_size,
    )
    if strategy.processes > 1:
        print(
            tr("{again}: the same command goes on from the last checkpoint", again=again), file=sys.stderr, flush=True
        )
        raise StoppedEarly(tr("{again}: the same command goes on from the last checkpoint", again=again))
    say(tr("{again}: starting again", again=again))
    sys.stdout.flush()
    os.execv(sys.executable, going_on(sys.orig_argv))


def going_on(command: list[str]) -> list[str]:
    """The same command without `--resume never`, which would set aside the run that is to go on."""
    pairs = zip(["", *command], command, strict=False)
    words = ["auto" if before == "--resume" and word == "never" else word for before, word in pairs]
    return ["--resume=auto" if word == "--resume=never" else word for word in words]


def measured(error: BaseException) -> str:
    """A sentence with the peak memory and the size of the allocation that failed."""
    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    used = f"{peak_memory_bytes() / 2**30:.1f}"
    if total:
        used = tr("{used} of {total:.1f}", used=used, total=total / 2**30)
    asked = str(error).split(". ")[1:2]  # 'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...'
    told = f"; {asked[0].strip().rstrip('.').lower()}" if asked else ""
    return tr("Out of memory: {used} GiB were in use at most{told}.", used=used, told=told)


def sentence(error: BaseException, recipe: Recipe, half: int | None) -> str:
    """The error with the flags that help, beginning with those that do not change the training."""
    flags = [tr("--micro-batch-size {half} (or --auto-micro-batch, which finds it)", half=half)] if half else []
    if recipe.recompute != "all":
        flags.append("--recompute all")
    if recipe.pack_length > recipe.max_length:
        flags.append(f"--pack-length {max(recipe.max_length, recipe.pack_length // 2)}")
    if recipe.method == "lora" and recipe.base_precision != "nf4":
        flags.append("--base-precision nf4")
    if recipe.method == "full":
        flags.append("--method lora")
    shorter = recipe.max_length // 2
    flags.append(tr("--max-length {shorter} --pack-length {shorter} (sets longer pairs aside)", shorter=shorter))
    flags.append(tr("accelerate_configs/zero3.yaml on more GPUs"))
    return tr("{measured} What helps, in this order: {flags}.", measured=measured(error), flags=", ".join(flags[:3]))


def loading_sentence(error: BaseException, recipe: Recipe) -> str:
    """The error for a model that cannot be loaded, with three things that help."""
    flags = []
    if recipe.method == "full":
        flags.append("--method lora --base-precision nf4")
    elif recipe.base_precision != "nf4":
        flags.append("--base-precision nf4")
    if recipe.base_precision != "nf4":  # with nf4 every process loads the whole base before ZeRO-3 partitions it
        flags.append(tr("accelerate_configs/zero3.yaml on more GPUs"))
    flags += [tr("a smaller --model"), tr("a GPU that nothing else uses (nvidia-smi; CUDA_VISIBLE_DEVICES)")]
    flags.append(tr("one with more memory"))
    return tr(
        "The model does not fit. {measured} What helps, in this order: {flags}.",
        measured=measured(error),
        flags=", ".join(flags[:3]),
    )
