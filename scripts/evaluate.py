"""Answer a split's questions with a run's model and score the answers; --base does the untuned model too.

    python scripts/evaluate.py --run runs/tiny --base --split test
    accelerate launch --config_file accelerate_configs/ddp.yaml scripts/evaluate.py --run runs/tiny

Writes runs/<name>/eval/<split>/ (and <split>-base/): predictions.jsonl and scores.json, and in <split>-nearest/ the
same for answers copied from the nearest training question. A killed evaluation goes on where it was with the same
command; a finished one is kept (--overwrite answers anew). Several processes share the questions and write the same.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError, format_seconds, run_script, say
from llm_qa.data.records import QARecord, load_split
from llm_qa.evaluation.answering import fingerprint, forget_parts, join_answers, predict, question_rows
from llm_qa.evaluation.contamination import contamination, nearest_rows, with_closest
from llm_qa.evaluation.embedding import COMPETITION_EMBEDDER, load_embedder, with_cosines
from llm_qa.evaluation.generation import DECODERS, check_decoder, named_settings
from llm_qa.evaluation.processes import end_processes, rank, start_processes, wait_for_all, world_size
from llm_qa.evaluation.scoring import score_predictions
from llm_qa.migrations import read_json, renamed_flags, stamped
from llm_qa.models.loading import base_of_run, load_run, run_recipe, weights_of
from llm_qa.models.shapes import model_config
from llm_qa.training.ranks import first_to_say


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--base", action="store_true", help="evaluate the untuned base as well, for comparison")
    parser.add_argument("--data", type=Path, help="prepared data (default: what the run was trained on)")
    parser.add_argument("--split", default="test", choices=files.SPLITS)
    parser.add_argument("--batch-size", type=int, default=16, help="questions answered at once")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer in tokens (default 128; original: 300)")
    parser.add_argument(
        "--sampling", default="greedy", choices=("greedy", "original"), help="original: as the original notebooks did"
    )
    parser.add_argument(
        "--decoder", default="plain", choices=DECODERS, help="static: GPT-NeoX, greedy; a fixed cache, CUDA graphs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the bootstrap")
    parser.add_argument("--limit", type=int, help="only the first N records of the split")
    parser.add_argument(
        "--embedder",
        metavar="MODEL",
        help=f"also score by sentence embeddings: a local sentence-transformers folder, or {COMPETITION_EMBEDDER}",
    )
    parser.add_argument("--overwrite", action="store_true", help="answer anew, although the evaluation is finished")
    options = parser.parse_args(renamed_flags(sys.argv[1:]))
    for flag, least in (("batch_size", 1), ("max_new_tokens", 1), ("limit", 1), ("seed", 0)):
        if (value := getattr(options, flag)) is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} is {value} and must be at least {least}.")
    return options


# What scores.json says of the answers themselves, beside the data and the scores.
WHOSE = (
    "label",
    "model",
    "generation",
    "fingerprint",
    "seconds",
    "reference_seconds",
    "answers_per_second",
    "processes",
)


def training_records(run: Path, data_dir: Path) -> list[QARecord] | None:
    """The records that the run was trained on; None, aloud, where its data is gone or has changed."""
    trained_on = read_json(run / files.ENVIRONMENT)
    for folder in (data_dir, Path(trained_on["data"])):
        if files.is_prepared(folder) and files.sha256_file(folder / files.MANIFEST) == trained_on["data_sha256"]:
            if folder != data_dir:
                say(f"note: {data_dir} is not the data of this run, which was trained on {folder}")
            return load_split(folder, "train")
    say(
        f"warning: {data_dir} is not the data of this run, and that is gone: records may have been trained on, and "
        "there is no row of nearest training answers"
    )
    return None


def answered_before(folder: Path, key: str, questions: list[dict]) -> tuple[list[dict], dict] | None:
    """(rows, whose) of a finished evaluation of the same questions, weights and settings; it is only scored again."""
    if not (folder / files.SCORES).is_file() or read_json(folder / files.SCORES).get("fingerprint") != key:
        return None
    document, predictions = read_json(folder / files.SCORES), files.read_jsonl(folder / files.PREDICTIONS)
    rows = join_answers(questions, predictions)
    return (rows, {key: document[key] for key in WHOSE}) if rows else None


def write_evaluation(rows: list[dict], about: dict, options: argparse.Namespace) -> None:
    """predictions.jsonl, then scores.json: whoever finds the second finds what it is of."""
    folder = files.evaluation_dir(options.run, options.split, about["label"])
    (folder / files.SCORES).unlink(missing_ok=True)
    files.write_jsonl(folder / files.PREDICTIONS, rows)
    found = contamination(rows) if "closest_training" in rows[0] else None
    scores = score_predictions(rows, seed=options.seed)
    files.write_json(folder / files.SCORES, stamped({**about, "contamination": found, "scores": scores}))
    say(f"{about['label']}: {len(rows):,} answers written to {folder}")


def main() -> int:
    """Phases: questions, copied answers, models' answers."""
    options = parse_arguments()
    recipe = run_recipe(options.run)
    settings = named_settings(options.sampling, options.max_new_tokens, seed=options.seed)
    if options.decoder != "plain":
        check_decoder(options.decoder, settings, model_config(base_of_run(options.run, recipe)))
    data_dir = options.data or Path(read_json(options.run / files.ENVIRONMENT)["data"])
    records = load_split(data_dir, options.split)[: options.limit]
    writes = rank() == 0
    embedder = load_embedder(options.embedder) if options.embedder and writes else None
    start_processes()
    about = {
        "run": options.run.name,
        "split": options.split,
        "data": str(data_dir),
        "data_sha256": files.sha256_file(files.split_file(data_dir, options.split)),
        "embedder": options.embedder,
    }
    questions = question_rows(records)
    if writes and (training := training_records(options.run, data_dir)):
        questions = with_closest(questions, training)
        copied = with_cosines(nearest_rows(questions, training), embedder)
        write_evaluation(copied, {**about, "label": files.NEAREST, "model": "nearest training answer"}, options)

    model = tokenizer = None
    for label in (files.TUNED, files.BASE) if options.base else (files.TUNED,):
        folder = files.evaluation_dir(options.run, options.split, label)
        generation = {**settings.to_dict(), "batch_size": options.batch_size}
        generation |= {"decoder": options.decoder} if options.decoder != "plain" else {}
        key = fingerprint(records, weights_of(options.run, recipe, label), recipe.model, label, generation)
        kept = None if options.overwrite else answered_before(folder, key, questions)
        wait_for_all()  # the first process writes anew what all have to read before
        if kept:
            say(f"{label}: answered before (--overwrite answers anew), scored again")
            rows, whose = kept
        else:
            if model is None or recipe.method == "full":
                model = None  # two whole models need not fit at once
                model, tokenizer = load_run(options.run, base=label == files.BASE)
            say(f"{label} model, {len(records):,} records of {data_dir}/{options.split}")
            uncovered = label == files.BASE and recipe.method == "lora"
            with model.disable_adapter() if uncovered else contextlib.nullcontext():
                answered = predict(
                    model, tokenizer, questions, settings, options.batch_size, folder, key, options.decoder
                )
            rows, seconds = answered.rows, answered.answering_seconds
            say(f"{label}: {len(rows):,} questions answered in {format_seconds(seconds)}")
            timing = (round(seconds, 3), round(answered.references_seconds, 3), round(len(rows) / seconds, 3))
            whose = dict(zip(WHOSE, (label, recipe.model, generation, key, *timing, world_size()), strict=True))
        if writes:
            write_evaluation(with_cosines(rows, embedder), {**about, **whose}, options)
        forget_parts(folder)
    end_processes()
    say(f"now: python scripts/report.py {options.run} --out reports/{options.run.name} --split {options.split}")
    return 0


if __name__ == "__main__":
    run_script(main, speaks=first_to_say)
