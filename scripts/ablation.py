"""Does preprocessing help? Train one recipe on differently cleaned data, score all on the same raw test, report.

    python scripts/ablation.py --name bundled --stopwords stopwords.txt
    python scripts/ablation.py chatbot_qa.csv --name chatbot --stopwords stopwords.txt --max-steps 200

Every cleaning (none, the original notebooks', theirs with their stopwords, particles dropped by morphemes) is trained
with the loss on answers and with the loss on everything. INPUT and the split are the same for all; the test split stays
raw. Flags that are not listed here go to train.py. Every step is kept: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from llm_qa import files
from llm_qa.console import EXIT_USER_ERROR, UserError, format_table, run_script, say
from llm_qa.evaluation.metrics.catalogue import MEASURES

SCRIPTS = Path(__file__).parent
LOSSES = ("answer", "everything")
SHOWN = ("character_f1", "chrf", "rougeL", "bits_per_character", "stopped_share")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The script's own flags, and those for train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="raw files (default: the bundled data)")
    parser.add_argument("--name", required=True, help="of data/<name>-*, runs/<name>-* and reports/<name>")
    parser.add_argument("--recipe", default=str(SCRIPTS / "recipes" / "tiny.yaml"), help="default: tiny.yaml")
    parser.add_argument("--stopwords", help="a stopword file; without one that cleaning is left out")
    parser.add_argument("--test", default="0.2", help="share of the records to score on (default 0.2)")
    options, rest = parser.parse_known_args()
    if Path(options.name).name != options.name:
        raise UserError(f"--name {options.name} is a path: give a plain name.")
    return options, rest


def cleanings(stopwords: str | None) -> dict[str, list[str]]:
    """Name -> flags of prepare_data.py."""
    variants = {"raw": [], "original": ["--cleaning", "original"]}
    if stopwords:
        variants["original-stopwords"] = ["--cleaning", "original", "--stopwords", stopwords]
    return {**variants, "morphemes": ["--stopwords", "morphemes"]}


def run(script: str, *arguments: str | Path) -> None:
    """Run another script; its user error is ours, and any other failure ends here."""
    done = subprocess.run([sys.executable, str(SCRIPTS / script), *map(str, arguments)])
    if done.returncode:
        kind = UserError if done.returncode == EXIT_USER_ERROR else RuntimeError
        raise kind(f"scripts/{script} ended with code {done.returncode}; the same command goes on from there.")


def main() -> int:
    """Phases: data, training and scores of each variant, report."""
    options, training = parse_arguments()
    if options.stopwords and not Path(options.stopwords).is_file():
        raise UserError(f"--stopwords {options.stopwords} does not exist.")
    if not options.stopwords:
        say("note: without --stopwords FILE the original notebooks' stopwords are left out")
    runs = {}
    for cleaning, flags in cleanings(options.stopwords).items():
        data = Path("data") / f"{options.name}-{cleaning}"
        say(f"== {cleaning} ==")
        run("prepare_data.py", *options.inputs, "--out", data, "--test", options.test, *flags)
        for loss in LOSSES:
            folder = Path("runs") / f"{options.name}-{cleaning}-{loss}"
            run("train.py", options.recipe, "--data", data, "--run", folder, "--loss-on", loss, *training)
            run("evaluate.py", "--run", folder)
            runs[cleaning, loss] = folder
    out = Path("reports") / options.name
    run("report.py", *runs.values(), "--out", out)

    rows = []
    for (cleaning, loss), folder in runs.items():
        scores = files.read_json(files.evaluation_dir(folder, "test") / files.SCORES)["scores"]["metrics"]
        rows.append([cleaning, f"loss on {loss}", *(MEASURES[key].format(scores[key]["value"]) for key in SHOWN)])
    titles = [f"{MEASURES[key].title} {MEASURES[key].arrow}" for key in SHOWN]
    say()
    say(format_table(["cleaning of the training texts", "", *titles], rows))
    say(f"which differences are certain: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_script(main)
