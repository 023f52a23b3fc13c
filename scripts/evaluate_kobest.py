"""Score a run's base and tuned model on KoBEST's five tasks by lm-evaluation-harness, from a local copy of the data.

    python scripts/evaluate_kobest.py --run runs/12.8b --kobest-dir data/kobest
    python scripts/evaluate_kobest.py --run runs/12.8b --kobest-dir data/kobest --shots 5 --tasks copa boolq

--kobest-dir holds <task>/test.jsonl, and <task>/train.jsonl for --shots above 0: skt/kobest_v1 as JSON lines. Needs
the optional lm-eval (pip install -e '.[kobest]'). Writes runs/<name>/eval/kobest/scores.json, which the report shows.
"""

import argparse
import contextlib
import importlib.metadata
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError, format_table, run_script, say
from llm_qa.evaluation.kobest import TASKS, check_data, load_harness, published_scores, score_model
from llm_qa.models.loading import load_run, run_recipe


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--kobest-dir", type=Path, required=True, help="folder of <task>/test.jsonl")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="default: all five")
    parser.add_argument("--shots", type=int, default=0, help="worked examples in the prompt (default 0)")
    parser.add_argument("--batch-size", type=int, default=16, help="choices scored at once")
    parser.add_argument("--limit", type=int, help="only the first N records of each task")
    options = parser.parse_args()
    for flag, least in (("shots", 0), ("batch_size", 1), ("limit", 1)):
        if (value := getattr(options, flag)) is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} is {value} and must be at least {least}.")
    return options


def main() -> int:
    """Phases: data, tuned model, base model."""
    options = parse_arguments()
    recipe, tasks = run_recipe(options.run), tuple(dict.fromkeys(options.tasks))
    counts = check_data(options.kobest_dir, tasks, options.shots)
    load_harness()
    how = {"num_fewshot": options.shots, "batch_size": options.batch_size, "limit": options.limit}

    model, tokenizer = load_run(options.run)
    say(f"tuned model on {', '.join(tasks)}")
    tuned = score_model(model, tokenizer, options.kobest_dir, tasks, **how)
    if recipe.method == "full":
        model = None  # two whole models need not fit at once
        model, tokenizer = load_run(options.run, base=True)
    say("base model on the same")
    with model.disable_adapter() if recipe.method == "lora" else contextlib.nullcontext():
        base = score_model(model, tokenizer, options.kobest_dir, tasks, **how)

    records = {task: min(counts[task], options.limit or counts[task]) for task in tasks}
    scores = {
        "run": options.run.name,
        "model": recipe.model,
        "lm_eval": importlib.metadata.version("lm_eval"),
        **how,
        "data_sha256": {task: files.sha256_file(options.kobest_dir / task / "test.jsonl") for task in tasks},
        "tasks": {task: {"records": records[task], "base": base[task], "tuned": tuned[task]} for task in tasks},
    }
    path = files.evaluation_dir(options.run, files.KOBEST) / files.SCORES
    files.write_json(path, scores)
    rows = []
    for task in tasks:
        published = published_scores(recipe.model, task, options.shots)
        told = f"{published:.4f}" if published else "–"
        rows.append([task, str(records[task]), f"{base[task]['f1']:.4f}", f"{tuned[task]['f1']:.4f}", told])
    say(format_table(["macro F1", "records", "base", "tuned", "base, published"], rows))
    say(f"written to {path}")
    return 0


if __name__ == "__main__":
    run_script(main)
