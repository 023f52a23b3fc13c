"""Before anything is downloaded: which ways of training fit, how long they take, what they need, and the commands.

    python scripts/plan.py --data train.csv                          the GPUs of this machine
    python scripts/plan.py --data train.csv --gpu "T4:2" --hours 12
    python scripts/plan.py --pairs 6440 --gpu "H100:8" --machines 2 --model polyglot-ko-5.8b
    python scripts/plan.py --calibrate                               3 updates measured on this machine's GPU first
    python scripts/plan.py --check                                   the formulas beside what was measured

Takes no weights or network and, but for --calibrate, no GPU. Memory and times are computed;
llm_qa/planning/README.md has how far they were off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

from llm_qa import files
from llm_qa.console import (
    ArgumentParser,
    UserError,
    format_seconds,
    format_table,
    positive_int,
    positive_number,
    run_script,
    say,
)
from llm_qa.data.preparation import bundled_file
from llm_qa.data.readers import read_files
from llm_qa.data.splits import open_split
from llm_qa.language import tr
from llm_qa.models.shapes import SHAPES
from llm_qa.planning.calibration import FILE, calibrate, calibrated
from llm_qa.planning.figures import FORMAT_CHARACTERS, TOKENS_PER_CHARACTER, few_updates
from llm_qa.planning.footprint import CONTEXT
from llm_qa.planning.known_gpus import gpus_of_this_machine, parse_gpus
from llm_qa.planning.measured import MEASURED
from llm_qa.planning.plain_path import PLAIN_RUNS, plain_gib
from llm_qa.planning.speed import trust, uncertainty
from llm_qa.planning.ways import Job, Plan, all_plans, best_of, predicted

KNOWN = {name.rpartition("/")[2]: name for name, shape in SHAPES.items() if shape.model_type == "gpt_neox"}
TOKENS_PER_PAIR = 74  # of the original notebooks' pairs, by --pairs
TRAINED_SHARE = 0.8  # of the rows of raw files: the rest is held out


def parse_arguments() -> argparse.Namespace:
    """The flags; UserError for values that mean nothing."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", help="a prepared folder, or raw files (default: the bundled data)")
    parser.add_argument(
        "--pairs", type=positive_int, help=tr("in place of --data: pairs of {tokens} tokens", tokens=TOKENS_PER_PAIR)
    )
    parser.add_argument("--gpu", help="'RTX 4090', 'T4:2', 'H100:8' of each machine (default: those of this machine)")
    parser.add_argument("--machines", type=positive_int, default=1, help="machines with as many GPUs each (1)")
    parser.add_argument("--memory", type=gibibytes, help="GiB of each GPU, in place of what the table says")
    parser.add_argument("--model", default="polyglot-ko-12.8b", help=tr("one of {models}", models=", ".join(KNOWN)))
    parser.add_argument("--epochs", type=positive_number, default=3.0, help="passes over the data (3)")
    parser.add_argument("--hours", type=positive_number, help="that a session may last")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--check", action="store_true", help="the formulas beside the runs that were measured")
    parser.add_argument("--calibrate", action="store_true", help="measure 3 updates on this GPU, and plan by them")
    parser.add_argument(
        "--calibration", type=Path, default=FILE, help=tr("the file that --calibrate writes ({path})", path=FILE)
    )
    options = parser.parse_args()
    options.model = KNOWN.get(options.model.rpartition("/")[2])
    if options.model is None:
        raise UserError(
            tr(
                "--model must be one of {known} here; train.py RECIPE --dry-run shows what another model takes.",
                known=", ".join(KNOWN),
            )
        )
    if options.data and options.pairs:
        raise UserError(tr("--data and --pairs both say how much is trained: give one of them."))
    if options.calibrate and options.gpu:
        raise UserError(
            tr("--calibrate measures 3 updates on the GPU of this machine, so leave --gpu {gpu} out.", gpu=options.gpu)
        )
    files.check_exists(options.data or (), "--data")
    return options


def gibibytes(text: str) -> float:
    """16, 16GiB or 16GB as a number of GiB."""
    try:
        value = float(text.lower().removesuffix("gib").removesuffix("gb").strip())
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(tr("{text} is not a number of GiB, like 16", text=text))
    return value


def tokens_of(data: list[str] | None, pairs: int | None) -> tuple[int, str]:
    """(tokens of an epoch, how they were counted) of a prepared folder's training split, raw files, or pairs."""
    if pairs:
        return pairs * TOKENS_PER_PAIR, tr("{pairs:,} pairs of {tokens} tokens", pairs=pairs, tokens=TOKENS_PER_PAIR)
    prepared = data is not None and Path(data[0]).is_dir()
    if prepared:
        assert data
        records, share = list(open_split(data[0], "train")), 1.0
    else:
        records, share = read_files(data or [bundled_file("train.csv")]).records, TRAINED_SHARE
    lengths = [len(question) + len(answer) + FORMAT_CHARACTERS for r in records for question, answer in r.pairs()]
    tokens = math.ceil(sum(lengths) * share * TOKENS_PER_CHARACTER)
    if prepared:
        return tokens, tr(
            "{pairs:,} pairs, estimated at {rate} tokens a character", pairs=len(lengths), rate=TOKENS_PER_CHARACTER
        )
    return tokens, tr(
        "{pairs:,} pairs, of which {share:.0%} are trained on, estimated at {rate} tokens a character",
        pairs=len(lengths),
        share=share,
        rate=TOKENS_PER_CHARACTER,
    )


def table(plans: list[Plan], best: Plan | None, with_sessions: bool) -> str:
    """One row for each way, in 80 columns; sessions stand in place of an epoch's time."""
    rows = []
    for plan in plans:
        name = f"{'*' if plan is best else ' '} {plan.way.name}, {plan.way.where}"
        row = [name, f"{plan.gib:,.1f}", f"{plan.host_gib:,.0f}", f"{plan.recomputed}/{plan.layers}"]
        row.append(f"{plan.micro_batch}")
        if plan.fits:
            about = "~" if plan.way.offload else ""
            row += [f"{about}{plan.tokens_per_second:,.0f}", span(plan.epoch_hours), span(plan.total_hours)]
            row[6:7] = [f"{plan.sessions}"] if with_sessions else row[6:7]
        else:
            row += [tr("{gib:,.1f} over", gib=plan.lacking), "–", "–"]
        rows.append(row)
    sessions = tr("sess." if with_sessions else "epoch")
    header = [f"  {tr('way')}", "GiB", tr("host"), tr("rec."), tr("batch"), tr("tok/s"), sessions, tr("all")]
    return format_table(header, rows)


def span(hours: float) -> str:
    """A time in hours as text."""
    return format_seconds(hours * 3600)


def reason(best: Plan | None, plans: list[Plan]) -> list[str]:
    """What is proposed and why, with what it needs, in lines."""
    if best is None:
        least = min(plans, key=lambda plan: plan.gib - plan.usable)
        nothing = tr(
            "Nothing fits: the nearest, {way} on {where}, needs {gib:,.1f} GiB of a GPU and {usable:,.1f} can be used. "
            "Take a larger GPU (--gpu), more of them, or a smaller --model.",
            way=least.way.name,
            where=least.way.where,
            gib=least.gib,
            usable=least.usable,
        )
        return [nothing]
    by_part = ", ".join(f"{tr(name)} {gib:,.1f}" for name, gib in best.parts.items())
    disk = tr("  disk: {gib:,.1f} GiB for two checkpoints and the result", gib=best.disk_gib)
    disk += tr("; memory of each machine: {gib:,.0f} GiB", gib=best.host_gib)
    lines = [
        tr("* {way} on {where}: the fastest that fits", way=best.way.name, where=best.way.where),
        f"    {best.command}",
        tr("  GiB of a GPU: {parts}; CUDA itself {context}", parts=by_part, context=CONTEXT / 2**30),
        disk,
    ]
    if few := few_updates(best.updates, best.epochs, best.global_batch_size, warms_up=True):
        lines.append(tr("  note: {few}", few=few))
    return lines


def check_table() -> str:
    """What was measured and how far off the formulas are, the largest error first, in 80 columns."""
    rows: list[tuple[float, list[str]]] = []
    for row in MEASURED:
        gib, speed = predicted(row)
        fast = speed / row.tokens_per_second - 1
        large = 0.0 if row.gib is None else gib / row.gib - 1
        layers = SHAPES[row.model].layers
        method, base = row.recipe.partition("_")[0], row.flags[1] if "--base-precision" in row.flags else ""
        products = "" if method == "full" else f"{row.kind}, "
        passes = f"{row.passes} x " if row.passes > 1 else ""
        kind = f"{row.size} {method}{base and f' {base}'}, {products}{passes}{row.tokens:,}, {row.recomputed}/{layers}"
        memory = [f"{row.gib:.1f}", f"{large:+.1%}"] if row.gib else ["–", "–"]
        times = [f"{row.tokens_per_second:,}", f"{fast:+.1%}"]
        engine = "host" if row.offload else row.engine
        rows.append((max(abs(fast), abs(large)), [kind, f"{engine}, {row.gpus} {row.gpu}", *memory, *times]))
    for run in PLAIN_RUNS:
        gib, method = plain_gib(run), run.recipe.partition("_")[0]
        large, share = gib / run.gib - 1, f"{run.recomputed}/{run.model.layers}"
        cells = [f"{run.model.name} {method}, plain, {run.tokens:,}, {share}", "one, 1 H200"]
        cells += [f"{run.gib:.1f}", f"{large:+.1%}", f"{run.tokens_per_second:,}", "–"]
        rows.append((abs(large), cells))
    header = [tr("run, products, tokens, recomputed"), tr("on"), "GiB", tr("off"), tr("tok/s"), tr("off")]
    return format_table(header, [cells for _, cells in sorted(rows, key=lambda each: -each[0])])


def main() -> int:
    """Phases: flags, tokens, plans, table."""
    options = parse_arguments()
    if options.check:
        say(check_table())
        return 0
    if options.calibrate and not gpus_of_this_machine():
        raise UserError(
            tr(
                "--calibrate measures 3 updates on the GPU of this machine, but nvidia-smi shows "
                "none: plan with --gpu instead."
            )
        )
    gpu, gpus = parse_gpus(options.gpu, options.memory)
    tokens, how = tokens_of(options.data, options.pairs)
    data = " ".join(options.data) if options.data else "train.csv"
    job = Job(options.model, gpu, gpus, options.machines, tokens, options.epochs, options.hours, data)
    if options.calibrate:
        calibrate(job, options.calibration)
    gpu = calibrated(gpu, options.calibration)
    job = dataclasses.replace(job, gpu=gpu)
    plans = all_plans(job)
    best = best_of(plans)
    if options.json:
        values = [{**dataclasses.asdict(p), "gib": p.gib, "fits": p.fits, "best": p is best} for p in plans]
        factor = uncertainty(gpu)
        found = {"gpu": gpu.name, "gpus": gpus, "tokens": tokens, "uncertainty": factor, "plans": values}
        say(json.dumps(found, ensure_ascii=False, indent=2), as_is=True)
        return 0
    say(
        tr(
            "{model} on {gpus} x {gpu}{machines}, {usable:,.1f} of {gib:,.1f} GiB of each can be used",
            model=options.model,
            gpus=gpus,
            gpu=gpu.name,
            machines=tr(" in each of {count} machines", count=options.machines) if options.machines > 1 else "",
            usable=plans[0].usable,
            gib=gpu.gib,
        )
    )
    say(tr("{epochs:g} epochs of {tokens:,} tokens ({how})", epochs=options.epochs, tokens=tokens, how=how))
    text = table(plans, best, options.hours is not None)
    say(text)
    say(tr("GiB: of each GPU at its peak, over: what is missing; host: GiB of each machine"))
    say(tr("rec.: layers recomputed; batch: packs of 512 tokens a pass"))
    if options.hours:
        say(tr("sess.: sessions of {hours:g} hours", hours=options.hours))
    if any(plan.way.offload for plan in plans):
        say(tr("offload: under ZeRO-3; ~: an estimate from one run, by the machine's processor"))
    say(tr("times: {trust}; loading and validation are not counted", trust=trust(gpu)))
    if job.machines > 1:
        say(
            tr(
                "between machines the network's time comes on top, but ZeRO-3's is counted (400 Gb/s): "
                "accelerate_configs/README.md has what is sent"
            )
        )
    for line in reason(best, plans):
        say(line, as_is=best is not None and best.command in line)
    others = [plan for plan in plans if plan.fits and plan is not best]
    if others:
        say(tr("the others that fit:"))
        for plan in others:
            say(f"  {plan.way.name}, {plan.way.where}:\n    {plan.command}", as_is=True)
    return 0


if __name__ == "__main__":
    run_script(main)
