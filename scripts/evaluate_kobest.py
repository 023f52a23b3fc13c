"""Score a run's base and tuned model on KoBEST's five tasks by lm-evaluation-harness, from a local copy of the data.

    python scripts/evaluate_kobest.py --run runs/12.8b --kobest-dir data/kobest
    python scripts/evaluate_kobest.py --run runs/12.8b --kobest-dir data/kobest --shots 5 --tasks copa boolq

--kobest-dir holds <task>/test.jsonl, and <task>/train.jsonl for --shots above 0 (skt/kobest_v1 as JSON lines), or
BoolQ/test.tsv and so on, as SKT publishes them (SKT-LSL/KoBEST_datarepo). Needs the optional lm-eval
(pip install -e '.[kobest]'). Writes predictions.jsonl (both models' choices) and scores.json (with 95% intervals and a
paired test), which the report shows, to runs/<name>/eval/kobest/.
"""

import argparse
import contextlib
import importlib.metadata
import tempfile
import time
from pathlib import Path

from llm_qa import files
from llm_qa.console import ArgumentParser, format_seconds, format_table, positive_int, run_script, say, whole_number
from llm_qa.data.readers.kobest import TASKS, find_split, write_json_lines
from llm_qa.evaluation.kobest import (
    MACRO_F1,
    check_data,
    choice_rows,
    compare_tasks,
    load_harness,
    needed_splits,
    published_scores,
    score_model,
    tested_tasks,
)
from llm_qa.evaluation.metrics.catalogue import UNKNOWN
from llm_qa.evaluation.report.views import span
from llm_qa.evaluation.statistics.comparison import apply_holm
from llm_qa.language import tr
from llm_qa.migrations import stamped


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--kobest-dir", type=Path, required=True, help="folder of <task>/test.jsonl or <Task>/test.tsv")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        choices=TASKS,
        metavar="TASK",
        help=tr("default: {tasks}", tasks=" ".join(TASKS)),
    )
    parser.add_argument("--shots", type=whole_number, default=0, help="worked examples in the prompt (default 0)")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="choices scored at once")
    parser.add_argument("--limit", type=positive_int, help="only the first N records of each task")
    options = parser.parse_args()
    if options.run:
        files.check_run(options.run)
    return options


def main() -> int:
    """Phases: data, tuned model, base model."""
    options = parse_arguments()
    # Imported here, because they take seconds that --help and errors in flags should not wait for.
    from llm_qa.models.loading import load_run, run_recipe

    recipe, tasks = run_recipe(options.run), tuple(dict.fromkeys(options.tasks))
    check_data(options.kobest_dir, tasks, options.shots)
    load_harness()
    how = {"num_fewshot": options.shots, "batch_size": options.batch_size, "limit": options.limit}

    scratch = tempfile.TemporaryDirectory(prefix="kobest-")  # the harness reads only JSON lines
    data = Path(scratch.name)
    write_json_lines(options.kobest_dir, tasks, needed_splits(options.shots), data)

    model, tokenizer = load_run(options.run)
    say(tr("tuned model on {tasks}", tasks=", ".join(tasks)))
    began = time.monotonic()
    tuned = score_model(model, tokenizer, data, tasks, **how)
    took = format_seconds(time.monotonic() - began)
    if recipe.method == "full":
        model = None  # frees the first model before the second is loaded
        model, tokenizer = load_run(options.run, base=True)
    say(tr("base model on the same tasks: about {duration}, as the tuned one took", duration=took))
    with model.disable_adapter() if recipe.method == "lora" else contextlib.nullcontext():
        base = score_model(model, tokenizer, data, tasks, **how)
    scratch.cleanup()

    scores = {
        "run": options.run.name,
        "model": recipe.model,
        "lm_eval": importlib.metadata.version("lm_eval"),
        **how,
        "data_sha256": {task: files.sha256_file(find_split(options.kobest_dir, task, "test")) for task in tasks},
        "tasks": compare_tasks(base, tuned),
    }
    folder = files.evaluation_dir(options.run, files.KOBEST)
    (folder / files.SCORES).unlink(missing_ok=True)
    files.write_jsonl(folder / files.PREDICTIONS, choice_rows(base, tuned))
    files.write_json(folder / files.SCORES, stamped(scores))
    say(table(scores))
    say(tr("written to {path}", path=folder / files.SCORES))
    return 0


def table(scores: dict) -> str:
    """Macro F1 of every task. Tests are corrected for these tasks here, and in a report for all of its tests."""
    comparison = apply_holm([tested_tasks(scores)], [tuple(scores["tasks"])])[0]
    header = [tr("macro F1"), tr("base"), tr("tuned"), tr("difference (95%)"), tr("tuned is"), tr("published")]
    rows = []
    for task, found in comparison["metrics"].items():
        published = published_scores(scores["model"], task, scores["num_fewshot"])
        shown, signed = MACRO_F1.format, MACRO_F1.format_difference
        interval = span(found, signed, found["records"]) or UNKNOWN
        rows.append([f"{task} ({found['records']:,})", shown(found["base"]), shown(found["tuned"])])
        rows[-1] += [interval, tr(found.get("outcome") or UNKNOWN), shown(published)]
    return format_table(header, rows)


if __name__ == "__main__":
    run_script(main)
