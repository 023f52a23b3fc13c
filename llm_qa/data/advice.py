"""What prepared data can show and what to do next, as prepare_data.py ends with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llm_qa.data.phrasings import PHRASINGS

LARGEST_SHARE = 0.4  # of the records, that is proposed for the test


def advice(manifest: dict[str, Any], out: Path, groups_needed: int) -> list[str]:
    """Sentences about a manifest: whether the test carries a verdict, how often facts are phrased, the next command.

    `groups_needed` are the fewest groups of test records with which a comparison can come to a verdict.
    """
    by_phrasing = manifest["options"].get("held_out") == PHRASINGS
    counted = [split for name, split in manifest["splits"].items() if not (by_phrasing and name == "test")]
    kept, single = (sum(split[key] for split in counted) for key in ("records", "one_phrasing"))
    lines = [held_out(manifest, groups_needed)]
    if 2 * single >= kept:
        lines.append(
            f"phrasings: {single:,} of {kept:,} records are asked in one way only; with two or three questions for an "
            "answer a model learns the fact and not the sentence"
        )
    train = f"make train RECIPE=scripts/recipes/qlora_12.8b.yaml DATA={out} RUN=runs/{out.resolve().name}"
    if manifest.get("documents"):
        train += ' ARGS="--retrieval 3 --max-length 1024 --pack-length 1024"'
    return [*lines, f"next: {train} (make plan DATA={out} says before what fits your GPU and how long it takes)"]


def held_out(manifest: dict[str, Any], needed: int) -> str:
    """Whether the held-out records can carry a verdict, and what would help."""
    groups, all_groups, share = manifest["test_groups"], manifest["groups"], manifest["options"]["test"]
    if manifest["options"].get("held_out") == PHRASINGS:
        enough = "enough" if groups >= needed else "too few"
        count = manifest["splits"]["test"]["records"]
        return (
            f"test: one wording of each of {count:,} records in {groups:,} groups, about facts taught in other "
            f"words: {enough} for a verdict, which needs {needed:,} groups; it says nothing about facts that "
            "the model is not taught"
        )
    if not groups:
        return "test: no record is held out, so facts that the model was not taught cannot be asked (--test 0.1)"
    what = f"test: {groups:,} group{'s'[: groups > 1]} of records held out, about facts that the model is not taught"
    if groups >= needed:
        return f"{what}: enough for a verdict, which needs {needed:,}"
    wanted = math.ceil(20 * max(share, needed / all_groups)) / 20 + 0.05 * (needed / all_groups > share)
    if wanted > LARGEST_SHARE:
        return f"{what}: too few for a verdict, which needs {needed:,}, so add records"
    return f"{what}: too few for a verdict, which needs {needed:,}, so prepare anew with --test {wanted:g} --overwrite"
