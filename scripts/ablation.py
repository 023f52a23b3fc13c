"""Compare ways of preprocessing: train one recipe on differently cleaned data, score all on the same raw test split.

    python scripts/ablation.py --name bundled --stopwords stopwords.txt
    python scripts/ablation.py chatbot_qa.csv --name chatbot --stopwords stopwords.txt --max-steps 200

Every cleaning (none, the original notebooks', theirs with their stopwords, particles dropped by morphemes) is trained
with the loss on answers and with the loss on everything, each compared with the first: raw texts, loss on answers. The
base model and the split are the same for all; the test split stays raw. Flags that are not listed here go to train.py.
Every finished step is kept, and the same command continues. Writes reports/<name>/ and ablation.txt in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from llm_qa import files
from llm_qa.config.recipe import load_recipe, recipe_flags
from llm_qa.console import (
    EXIT_USER_ERROR,
    IS_STEP,
    ArgumentParser,
    UserError,
    format_seconds,
    format_table,
    run_script,
    say,
)
from llm_qa.evaluation.evaluations import Evaluation, load_evaluation
from llm_qa.evaluation.metrics.catalogue import BITS_PER_CHARACTER, CHARACTER_F1, MEASURES, UNKNOWN
from llm_qa.evaluation.report.views import format_p, reading_text
from llm_qa.evaluation.statistics.comparison import apply_holm, compare_predictions
from llm_qa.evaluation.statistics.verdict import count_words
from llm_qa.language import later, tr
from llm_qa.migrations import read_json

SCRIPTS = Path(__file__).parent
LOSSES = {"answer": later("loss on answer"), "everything": later("loss on everything")}
SHOWN = (CHARACTER_F1, "chrf", "rougeL", BITS_PER_CHARACTER, "stopped_share")
PREPARATION = ("question-column", "answer-column", "category-column", "id-column", "validation")
COMPARED = (CHARACTER_F1, BITS_PER_CHARACTER)
Runs = dict[tuple[str, str], Path]  # (cleaning, loss) -> run folder, the first is what the others are compared with


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The script's own flags, and those for train.py. Words before the first flag are INPUT; later ones are values."""
    parser = ArgumentParser(
        usage="ablation.py [INPUT ...] --name NAME [flags, of train.py too]",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--name", required=True, help="of data/<name>-*, runs/<name>-* and reports/<name>")
    parser.add_argument("--recipe", default=str(SCRIPTS / "recipes" / "tiny.yaml"), help="default: tiny.yaml")
    parser.add_argument("--stopwords", help="a stopword file; without one that cleaning is left out")
    parser.add_argument("--test", default="0.2", help="share of the records to score on (default 0.2)")
    for name in PREPARATION:
        parser.add_argument(f"--{name}", action="append", default=[], help="as for prepare_data.py")
    words = sys.argv[1:]
    first_flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    options, rest = parser.parse_known_args(words[first_flag:])
    options.inputs = words[:first_flag]
    if Path(options.name).name != options.name:
        raise UserError(tr("--name {name} is a path: give a plain name.", name=options.name))
    return options, rest


def cleanings(stopwords: str | None) -> dict[str, list[str]]:
    """Name -> flags of prepare_data.py."""
    variants = {"raw": [], "original": ["--cleaning", "original"]}
    if stopwords:
        variants["original-stopwords"] = ["--cleaning", "original", "--stopwords", stopwords]
    return {**variants, "morphemes": ["--stopwords", "morphemes"]}


def run(script: str, *arguments: str | Path) -> None:
    """Run another script; its exit code 2 raises UserError, other failures RuntimeError."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, IS_STEP: "1"})
    if done.returncode:
        kind = UserError if done.returncode == EXIT_USER_ERROR else RuntimeError
        told = tr(
            "scripts/{script} ended with code {code}; the same command goes on from there.",
            script=script,
            code=done.returncode,
        )
        raise kind(told)


def evaluation_of(run: Path) -> Evaluation:
    """The evaluation that evaluate.py has just written."""
    evaluation = load_evaluation(run, "test", files.TUNED)
    assert evaluation is not None, run
    return evaluation


def score_table(runs: Runs) -> str:
    """Scores and training steps of every variant."""
    rows = []
    for (cleaning, loss), folder in runs.items():
        scores = evaluation_of(folder).scores
        steps = read_json(folder / files.TRAINING)["steps"]
        values = [MEASURES[key].format(scores["metrics"][key]["value"]) for key in SHOWN]
        different = tr("{count:,} of {total:,}", count=scores["different_answers"], total=scores["questions"])
        rows.append([cleaning, tr(LOSSES[loss]), f"{steps:,}", *values, different])
    titles = [f"{MEASURES[key].title} {MEASURES[key].arrow}" for key in SHOWN]
    header = [tr("training texts"), "", tr("steps"), *titles, tr("different answers")]
    return format_table(header, rows)


def difference_table(runs: Runs) -> str:
    """Every variant minus the first on the same records: difference, 95% interval, corrected p and outcome."""
    first, *others = (evaluation_of(run).rows for run in runs.values())
    compared = [compare_predictions(first, rows, groups=False) for rows in others]
    rows = []
    for (cleaning, loss), comparison in zip(
        list(runs)[1:], apply_holm(compared, [COMPARED] * len(compared)), strict=True
    ):
        cells = []
        for key in COMPARED:
            values, signed = comparison["metrics"][key], MEASURES[key].format_difference
            cells += [
                signed(values["difference"]),
                tr("{low} to {high}", low=signed(values["low"]), high=signed(values["high"])),
                format_p(values["p_holm"]),
                reading_text(values, comparison) or UNKNOWN,
            ]
        rows.append([cleaning, tr(LOSSES[loss]), *cells])
    columns = tr("95% interval"), tr("p (Holm)"), tr("is")
    titles = [title for key in COMPARED for title in (MEASURES[key].title, *columns)]
    header = [tr("minus raw, loss on answer"), "", *titles]
    note = tr("Intervals and tests are over groups: another training seed may differ by more.")
    return f"{format_table(header, rows)}\n{count_words(compared[0])}. {note}"


def main() -> int:
    """Phases: data, training and scores of each variant, report."""
    options, training = parse_arguments()
    if options.stopwords and not Path(options.stopwords).is_file():
        raise UserError(tr("--stopwords {stopwords} does not exist.", stopwords=options.stopwords))
    load_recipe(options.recipe, recipe_flags(training))  # raises UserError for a bad flag
    if not options.stopwords:
        say(tr("note: without --stopwords FILE the original notebooks' stopwords are left out"))
    columns = [f"--{name}={value}" for name in PREPARATION for value in getattr(options, name.replace("-", "_"))]
    data = {cleaning: Path("data") / f"{options.name}-{cleaning}" for cleaning in cleanings(options.stopwords)}
    for cleaning, flags in cleanings(options.stopwords).items():
        say(f"== {cleaning} ==")
        run("prepare_data.py", *options.inputs, "--out", data[cleaning], "--test", options.test, *columns, *flags)

    runs: Runs = {}
    began, variants = time.monotonic(), len(data) * len(LOSSES)
    for cleaning, folder in data.items():
        for loss in LOSSES:
            say(f"== {cleaning}, {tr(LOSSES[loss])} ==")
            runs[cleaning, loss] = Path("runs") / f"{options.name}-{cleaning}-{loss}"
            variant: list[str | Path] = ["--data", folder, "--run", runs[cleaning, loss], "--loss-on", loss]
            run("train.py", options.recipe, *variant, *training)
            share_base_answers(runs)
            run("evaluate.py", "--run", runs[cleaning, loss], "--base", *same_limit(runs))
            if left := variants - len(runs):
                say(time_left(len(runs), left, time.monotonic() - began))
    out = Path("reports") / options.name
    run("report.py", *runs.values(), "--out", out)
    tables = f"{score_table(runs)}\n\n{difference_table(runs)}"
    files.write_text(out / "ablation.txt", tables + "\n")
    say(f"\n{tables}\n{tr('written to {path}', path=out)}")
    return 0


def time_left(done: int, left: int, seconds: float) -> str:
    """How long the variants that are left take, at most, when so many took so many seconds."""
    return tr(
        "{done} of {all} variants in {spent}; about {left} left",
        done=done,
        all=done + left,
        spent=format_seconds(seconds),
        left=format_seconds(seconds / done * left),
    )


def same_limit(runs: Runs) -> list[str]:
    """Flags that give every variant the token limit of the first, which its training answers determine."""
    first = next(iter(runs.values()))
    if not (files.evaluation_dir(first, "test") / files.SCORES).is_file():
        return []
    return ["--max-new-tokens", str(evaluation_of(first).generation["max_new_tokens"])]


def share_base_answers(runs: Runs) -> None:
    """Copy the first run's answers of the base to the newest; evaluate.py uses them only if nothing differs."""
    first, newest = (files.evaluation_dir(list(runs.values())[i], "test", files.BASE) for i in (0, -1))
    if first.is_dir() and not newest.is_dir():
        shutil.copytree(first, newest)


if __name__ == "__main__":
    run_script(main)
