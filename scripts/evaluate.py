"""Answer a split's questions with a run's model and score the answers; --base does the untuned model too.

    python scripts/evaluate.py --run runs/tiny --base --split test
    accelerate launch --config_file accelerate_configs/single_gpu.yaml scripts/evaluate.py --run runs/tiny

Writes runs/<name>/eval/<split>/ (and <split>-base/): predictions.jsonl and scores.json.
"""

import argparse
import contextlib
import time
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError, format_seconds, run_script, say
from llm_qa.data.records import QARecord, load_split
from llm_qa.data.text import comparable, normalize
from llm_qa.evaluation.generation import ORIGINAL_SAMPLING, GenerationSettings, generate_answers, reference_bits
from llm_qa.evaluation.scoring import score_predictions
from llm_qa.models.loading import load_run, run_recipe


def predict(model, tokenizer, records: list[QARecord], settings: GenerationSettings, batch_size: int) -> list[dict]:
    """One row a question: its answer, and the bits that each reference answer costs under the model."""
    asked = [(record, index, question) for record in records for index, question in enumerate(record.questions)]
    answers = generate_answers(
        model, tokenizer, [(question, record.context) for record, _, question in asked], settings, batch_size=batch_size
    )
    triples = [(question, reference, record.context) for record, _, question in asked for reference in record.answers]
    bits = iter(reference_bits(model, tokenizer, triples))
    return [
        {
            "id": record.id,
            "question_index": index,
            "question": question,
            **({"context": record.context} if record.context else {}),
            "category": record.category,
            "references": list(record.answers),
            "prediction": answer.text,
            "stopped": answer.stopped,
            "generated_tokens": answer.tokens,
            "reference_bits": [next(bits) for _ in record.answers],
            "reference_characters": [len(normalize(reference)) for reference in record.answers],
        }
        for (record, index, question), answer in zip(asked, answers, strict=True)
    ]


def evaluate(model, tokenizer, records, options: argparse.Namespace, settings, data_dir: Path, *, base: bool) -> None:
    """Predict, score and write one model's evaluation folder."""
    label = "base" if base else "tuned"
    say(f"{label} model, {len(records):,} records of {data_dir}/{options.split}")
    started = time.perf_counter()
    rows = predict(model, tokenizer, records, settings, options.batch_size)
    seconds = time.perf_counter() - started
    folder = files.evaluation_dir(options.run, options.split, base=base)
    files.write_jsonl(folder / files.PREDICTIONS, rows)
    scores = {
        "run": options.run.name,
        "label": label,
        "model": run_recipe(options.run).model,
        "split": options.split,
        "data": str(data_dir),
        "data_sha256": files.sha256_file(files.split_file(data_dir, options.split)),
        "generation": {**settings.to_dict(), "batch_size": options.batch_size},
        "seconds": round(seconds, 3),
        "answers_per_second": round(len(rows) / seconds, 3),
        "scores": score_predictions(rows),
    }
    files.write_json(folder / files.SCORES, scores)
    say(f"{label}: {len(rows):,} answers in {format_seconds(seconds)}, written to {folder}")


def warn_of_training_records(run: Path, data_dir: Path, records: list[QARecord]) -> None:
    """Say aloud when the data is not the run's own, and how many of its records the run was trained on."""
    trained_on = files.read_json(run / files.ENVIRONMENT)
    if files.sha256_file(data_dir / files.MANIFEST) == trained_on["data_sha256"]:
        return
    source = Path(trained_on["data"])
    if not files.is_prepared(source) or files.sha256_file(source / files.MANIFEST) != trained_on["data_sha256"]:
        say(f"warning: {data_dir} is not the data of this run, and that is gone: records may have been trained on")
        return
    known = {comparable(question) for record in load_split(source, "train") for question in record.questions}
    seen = sum(any(comparable(question) in known for question in record.questions) for record in records)
    say(
        f"warning: {data_dir} is not the data of this run; it was trained on {seen:,} of these {len(records):,} records"
    )


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--base", action="store_true", help="evaluate the untuned base as well, for comparison")
    parser.add_argument("--data", type=Path, help="prepared data (default: what the run was trained on)")
    parser.add_argument("--split", default="test", choices=files.SPLITS)
    parser.add_argument("--batch-size", type=int, default=16, help="questions answered at once")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer in tokens")
    parser.add_argument(
        "--sampling", default="greedy", choices=("greedy", "original"), help="original: as the original notebooks did"
    )
    parser.add_argument("--limit", type=int, help="only the first N records of the split")
    options = parser.parse_args()
    for flag in ("batch_size", "max_new_tokens", "limit"):
        if (value := getattr(options, flag)) is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} is {value} and must be at least 1.")
    return options


def main() -> int:
    """Phases: data, tuned model, base model."""
    options = parse_arguments()
    recipe = run_recipe(options.run)
    data_dir = options.data or Path(files.read_json(options.run / files.ENVIRONMENT)["data"])
    records = load_split(data_dir, options.split)[: options.limit]
    warn_of_training_records(options.run, data_dir, records)
    settings = GenerationSettings(options.max_new_tokens) if options.sampling == "greedy" else ORIGINAL_SAMPLING

    model, tokenizer = load_run(options.run)
    evaluate(model, tokenizer, records, options, settings, data_dir, base=False)
    if options.base:
        if recipe.method == "full":
            del model
            model, tokenizer = load_run(options.run, base=True)
        uncovered = model.disable_adapter() if recipe.method == "lora" else contextlib.nullcontext()
        with uncovered:
            evaluate(model, tokenizer, records, options, settings, data_dir, base=True)
    say(f"now: python scripts/report.py {options.run} --out reports/{options.run.name} --split {options.split}")
    return 0


if __name__ == "__main__":
    run_script(main)
