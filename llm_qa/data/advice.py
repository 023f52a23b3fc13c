"""What prepared data can show and what to do next, as prepare_data.py ends with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llm_qa.console import counted
from llm_qa.data.phrasings import PHRASINGS
from llm_qa.language import tr

LARGEST_SHARE = 0.4  # of the records, that is proposed for the test


def advice(manifest: dict[str, Any], groups_needed: int) -> list[str]:
    """Sentences about a manifest: whether the test carries a verdict, and how often facts are phrased.

    `groups_needed` are the fewest groups of test records with which a comparison can come to a verdict.
    """
    by_phrasing = manifest["options"].get("held_out") == PHRASINGS
    counted = [split for name, split in manifest["splits"].items() if not (by_phrasing and name == "test")]
    kept, single = (sum(split[key] for split in counted) for key in ("records", "one_phrasing"))
    lines = [held_out(manifest, groups_needed)]
    if 2 * single >= kept:
        lines.append(
            tr(
                "phrasings: {single:,} of {kept:,} records are asked in one way only; with two or three questions for "
                "an answer a model learns the fact and not the sentence",
                single=single,
                kept=kept,
            )
        )
    return lines


def next_command(manifest: dict[str, Any], out: Path) -> str:
    """What trains on the data of a manifest in `out`."""
    train = f"make train RECIPE=scripts/recipes/qlora_12.8b.yaml DATA={out} RUN=runs/{out.resolve().name}"
    if manifest.get("documents"):
        train += ' ARGS="--retrieval 3 --max-length 1024 --pack-length 1024"'
    return tr(
        "next: {train} (make plan DATA={out} says before what fits your GPU and how long it takes)",
        train=train,
        out=out,
    )


def held_out(manifest: dict[str, Any], needed: int) -> str:
    """Whether the held-out records can carry a verdict, and what would help."""
    groups, all_groups, share = manifest["test_groups"], manifest["groups"], manifest["options"]["test"]
    if manifest["options"].get("held_out") == PHRASINGS:
        return tr(
            "test: one wording of each of {count:,} records in {groups:,} groups, about facts taught in other words: "
            "{enough} for a verdict, which needs {needed:,} groups; it says nothing about facts that the model is not "
            "taught",
            count=manifest["splits"]["test"]["records"],
            groups=groups,
            enough=tr("enough" if groups >= needed else "too few"),
            needed=needed,
        )
    if not groups:
        return tr("test: no record is held out, so facts that the model was not taught cannot be asked (--test 0.1)")
    what = tr(
        "test: {groups} of records held out, about facts that the model is not taught", groups=counted(groups, "group")
    )
    if groups >= needed:
        return tr("{what}: enough for a verdict, which needs {needed:,}", what=what, needed=needed)
    wanted = math.ceil(20 * max(share, needed / all_groups)) / 20 + 0.05 * (needed / all_groups > share)
    if wanted > LARGEST_SHARE:
        return tr("{what}: too few for a verdict, which needs {needed:,}, so add records", what=what, needed=needed)
    return tr(
        "{what}: too few for a verdict, which needs {needed:,}, so prepare anew with --test {wanted:g} --overwrite",
        what=what,
        needed=needed,
        wanted=wanted,
    )
