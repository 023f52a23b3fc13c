"""Before anything is read: can this recipe run here, in which precision, and with which micro-batch does it begin?"""

from __future__ import annotations

from pathlib import Path

import torch

from llm_qa.config.recipe import Recipe
from llm_qa.models.embedder import check_folder, check_installed
from llm_qa.models.precision import Precision, gpu_capability, resolve_precision
from llm_qa.planning.dry_run import check_fit, check_hardware, widest_pass
from llm_qa.training.out_of_memory import micro_batch_file, with_stored_micro_batch
from llm_qa.training.strategy import Strategy, check_strategy, fit_precision


def check_machine(recipe: Recipe, strategy: Strategy) -> Precision:
    """Refuse with a UserError what this machine or this strategy cannot run; returns the precision to run in."""
    capability = gpu_capability()
    check_hardware(recipe, capability)
    check_strategy(recipe, strategy, torch.cuda.device_count() if torch.cuda.is_available() else None)
    if recipe.retrieval_embedder:
        check_installed()
        check_folder(recipe.retrieval_embedder)
    return fit_precision(resolve_precision(recipe, capability), strategy)


def first_micro_batch(recipe: Recipe, strategy: Strategy, run_dir: Path, *, auto: bool, anew: bool) -> Recipe:
    """The recipe with the micro-batch that this start of a run begins with; UserError where the run does not fit.

    That is what an earlier start found to fit, unless the run begins `anew`; without one, and where the user asks for
    an `auto`matic choice, the largest that should fit (`widest_pass`).
    """
    if not anew:
        recipe = with_stored_micro_batch(recipe, run_dir)
    if auto and (anew or not micro_batch_file(run_dir).is_file()):
        recipe = widest_pass(recipe, strategy)
    check_fit(recipe, strategy, auto=auto)
    return recipe
