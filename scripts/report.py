"""Write the report of one or more evaluated runs: one HTML page, the same as Markdown, and the plots.

    python scripts/report.py runs/tiny --out reports/tiny
    python scripts/report.py runs/kogpt2 runs/1.3b runs/12.8b --out reports/all --split test

Each run must have been evaluated (scripts/evaluate.py) on the same data; with `--base` evaluated as well, tuned is
compared with base. Ends with the scores on the screen and the report's path.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llm_qa.console import ArgumentParser, run_script, say, whole_number
from llm_qa.evaluation.report.loading import load_report
from llm_qa.evaluation.report.rendering import final_screen, write_report
from llm_qa.files import SPLITS
from llm_qa.language import tr


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, like runs/tiny")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the report goes, like reports/tiny")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="prepared data evaluated on (default: what each was trained on)"
    )
    parser.add_argument("--split", default="test", choices=SPLITS, help="which evaluation to report (default: test)")
    parser.add_argument(
        "--samples",
        type=whole_number,
        default=20,
        metavar="N",
        help="sample answers of each kind for each run (default: 20; 0 leaves them out)",
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, help="seed of the bootstrap, the tests and the random samples"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Load, compare and write the report; print its scores."""
    options = parse_arguments(arguments)
    report = load_report(
        options.runs, split=options.split, data=options.data, seed=options.seed, samples=options.samples
    )
    path = write_report(report, options.out)
    say(final_screen(report))
    say()
    say(tr("report: {path}", path=path))


if __name__ == "__main__":
    run_script(main)
