"""The run signature (recipe, data, number of processes): what must be the same, or allowed to change, on a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError, say
from llm_qa.language import tr

KINDS = ("recipe", "data", "processes")  # the values of --allow-change
FREE = ("max_hours", "save_total_limit", "keep", "sample_answers")  # these change nothing that is computed
# Keys that are read at every start. Others are stored in the checkpoint (learning_rate in the optimizer's state,
# save_steps in Trainer's state) or shaped the weights: a change would be silently ignored or make another training.
READ_ANEW = (
    *("max_steps", "num_train_epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("micro_batch_size", "recompute", "report_to", "dataloader_num_workers", "dataloader_prefetch_factor"),
    "early_stopping",
)


def run_signature(recipe: Recipe, data_sha256: str, processes: int) -> dict[str, Any]:
    """What has to stay the same from one start of a run to the next, as JSON."""
    return {"recipe": recipe.to_dict(), "data_sha256": data_sha256, "processes": processes}


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[str]]:
    """Kind of difference -> descriptions of the differences; only kinds that differ."""
    old, new = before["recipe"], now["recipe"]
    old_data, new_data = (str(one["data_sha256"])[:12] for one in (before, now))
    old_count, new_count = (str(one["processes"]) for one in (before, now))
    keys = sorted(key for key in {*old, *new} if key not in FREE)
    found = {
        "recipe": [f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)],
        "data": [tr("the data {before} -> {now}", before=old_data, now=new_data)] * (old_data != new_data),
        "processes": [tr("{before} -> {now} processes", before=old_count, now=new_count)] * (old_count != new_count),
    }
    return {kind: words for kind, words in found.items() if words}


def check_same(before: dict[str, Any], now: dict[str, Any], allowed: list[str], where: Path) -> None:
    """Raise UserError where the run signature differs from that of `where`, unless that kind of change is allowed."""
    found = differences(before, now)
    refused = {kind: words for kind, words in found.items() if kind not in allowed}
    if refused:
        told = "; ".join(word for words in refused.values() for word in words)
        raise UserError(
            tr(
                "{where} holds a run with another setting ({told}): go on all the same with "
                "--allow-change {kinds}, name another folder with --run, or set the old run aside "
                "with --resume never.",
                where=where,
                told=told,
                kinds=" ".join(refused),
            )
        )
    fixed = [word for word in found.get("recipe", ()) if word.split()[0] not in READ_ANEW]
    if fixed:
        raise UserError(
            tr(
                "{where} goes on with what it began with, which --allow-change cannot change: "
                "{fixed}. Name another folder with --run, or set the old run aside with --resume "
                "never.",
                where=where,
                fixed="; ".join(fixed),
            )
        )
    for words in found.values():
        say(tr("changed since {where}: {changes}", where=where, changes="; ".join(words)))
