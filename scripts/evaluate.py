"""Answer a split's questions with a run's model and score the answers; --base also evaluates the untuned model.

    python scripts/evaluate.py --run runs/tiny --base --split test
    python scripts/evaluate.py --run runs/tiny --merged exports/tiny
    accelerate launch --config_file accelerate_configs/ddp.yaml scripts/evaluate.py --run runs/tiny

Writes runs/<name>/eval/<split>/ (and <split>-base/): predictions.jsonl and scores.json, and in <split>-nearest/ the
same for answers copied from the nearest training question, with --retrieval <split>-with-references/ (and
<split>-base-with-references/); data that the run was not trained on has a folder of its own
in eval/. After a kill or Ctrl-C, the same command continues the evaluation; a finished one is kept unless --overwrite
is given. Several processes divide the questions among them and write the same files.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from llm_qa import files
from llm_qa.console import (
    ArgumentParser,
    StoppedEarly,
    UserError,
    format_seconds,
    positive_int,
    run_script,
    say,
    say_next,
    whole_number,
)
from llm_qa.data.splits import load_split
from llm_qa.distributed import end_processes, first_to_say, rank, start_processes, wait_for_all, world_size
from llm_qa.evaluation.evaluations import WHOSE, answered_before, say_what_is_replaced, write_evaluation
from llm_qa.evaluation.metrics.embedding import COMPETITION_EMBEDDER, with_cosines
from llm_qa.evaluation.predict.contamination import contamination, nearest_rows, with_closest
from llm_qa.evaluation.predict.run_data import data_name, data_of_run, groups_of_split, held_out_of, training_records
from llm_qa.inference.settings import CANDIDATES_HELP, DECODER_HELP, DECODERS, MAX_NEW_TOKENS_HELP, named_settings
from llm_qa.language import later, tr
from llm_qa.migrations import renamed_flags
from llm_qa.models.embedder import load_embedder

# What evaluations are called that are not of the tuned model or its base, where Korean names them.
NAMES = (later("joined"), later("merged"), later("with-references"), later("base-with-references"))


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--base", action="store_true", help="evaluate the untuned base as well, for comparison")
    parser.add_argument(
        "--merged", type=Path, metavar="FOLDER", help="evaluate only the run's weights as export.py has written them"
    )
    parser.add_argument(
        "--joined",
        action="store_true",
        help="also ask the split's questions two at once (always done for a run that trained with join_questions)",
    )
    parser.add_argument(
        "--retrieval",
        type=positive_int,
        metavar="K",
        help="of a run trained without references: answer also with the K nearest training records before a question",
    )
    parser.add_argument("--data", type=Path, help="prepared data (default: what the run was trained on)")
    parser.add_argument("--split", default="test", choices=files.SPLITS)
    parser.add_argument("--batch-size", type=positive_int, default=16, help="questions answered at once")
    parser.add_argument("--max-new-tokens", type=positive_int, help=MAX_NEW_TOKENS_HELP)
    parser.add_argument(
        "--sampling", default="greedy", choices=("greedy", "original"), help="original: as the original notebooks did"
    )
    parser.add_argument("--candidates", type=positive_int, default=1, metavar="N", help=CANDIDATES_HELP)
    parser.add_argument("--decoder", default="auto", choices=DECODERS, help=DECODER_HELP)
    parser.add_argument("--seed", type=whole_number, default=0, help="of sampling and of the bootstrap")
    parser.add_argument("--limit", type=positive_int, help="only the first N records of the split")
    parser.add_argument(
        "--embedder",
        metavar="MODEL",
        help=tr(
            "also score by sentence embeddings, and choose among --candidates by them: a local sentence-transformers "
            "folder, or {model}",
            model=COMPETITION_EMBEDDER,
        ),
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="generate new answers, although the evaluation is finished"
    )
    options = parser.parse_args(renamed_flags(sys.argv[1:]))
    if options.run:
        files.check_run(options.run)
    if options.merged:
        files.check_exists([options.merged / "config.json"], "--merged")
        if options.base:
            raise UserError(tr("--base and --merged are both given: evaluate one after the other."))
        if options.retrieval:
            raise UserError(tr("--retrieval and --merged are both given: evaluate one after the other."))
    return options


def labels_of(options: argparse.Namespace, joined: bool) -> list[str]:
    """Whose answers are asked for, and to what."""
    if options.merged:
        return [files.MERGED]
    with_references = bool(options.retrieval)
    tuned = [files.TUNED, *[files.JOINED][:joined], *[files.TUNED_WITH][:with_references]]
    return [*tuned, *[files.BASE, files.BASE_WITH][: options.base * (1 + with_references)]]


def main() -> int:
    """Phases: questions, copied answers, models' answers."""
    options = parse_arguments()
    try:
        evaluate(options)
    except KeyboardInterrupt:
        raise StoppedEarly(
            tr(
                "stopped: every batch of answers so far is kept in {folder}, and the same command goes on",
                folder=options.run / "eval",
            )
        ) from None
    return 0


def evaluate(options: argparse.Namespace) -> None:
    """Answer, score and write, for the tuned model and with --base for the base."""
    from llm_qa.evaluation.predict.answer_key import answers_key
    from llm_qa.evaluation.predict.asking import asked_with_references, find_source
    from llm_qa.evaluation.predict.joined import coverage, coverage_line, joined_questions
    from llm_qa.evaluation.predict.predictions import asked_of, delete_all_partial_results, predict, question_rows
    from llm_qa.models.loading import load_run

    chosen = {"candidates": options.candidates, "embedder": options.embedder}
    settings = named_settings(options.sampling, options.max_new_tokens, seed=options.seed, run=options.run, **chosen)
    source = find_source(run=options.run, decoder=options.decoder)
    merged = find_source(model=str(options.merged), decoder=options.decoder) if options.merged else source
    recipe, data_dir = source.recipe, options.data or data_of_run(options.run)
    place = data_name(options.run, data_dir)
    split = load_split(data_dir, options.split)
    records = split[: options.limit]
    groups = groups_of_split(data_dir, split)
    rows = question_rows(records, groups)
    labels = labels_of(options, options.joined or bool(recipe.join_questions))
    both, both_rows = joined_questions(records, groups, options.seed) if files.JOINED in labels else ([], [])
    tokenizer = merged.load_tokenizer()
    asked = source.fit(asked_of(rows), settings, tokenizer)
    asked_both = source.fit(asked_of(both_rows), settings, tokenizer)
    asked_with = []
    if options.retrieval:
        beside = asked_with_references(source, data_dir, options.retrieval)
        asked_with = beside.fit(asked_of(rows), settings, tokenizer)
    writes = rank() == 0
    embedder = load_embedder(options.embedder) if options.embedder and writes else None
    start_processes()
    about = {
        "run": options.run.name,
        "split": options.split,
        "data": str(data_dir),
        "data_sha256": files.sha256_file(files.split_file(data_dir, options.split)),
        "embedder": options.embedder,
        "held_out": held_out_of(data_dir, options.split),
    }

    def folder_of(label: str) -> Path:
        return files.evaluation_dir(options.run, options.split, label, place)

    if place:
        say(
            tr(
                "{data_dir} is not the data of {run}: its evaluation goes to {folder}",
                data_dir=data_dir,
                run=options.run,
                folder=folder_of(files.TUNED),
            )
        )
    if writes and (training := training_records(options.run, data_dir)):
        rows = with_closest(rows, training)
        if trained_on := contamination(rows)["trained_on_questions"]:
            say(
                tr(
                    "warning: {trained_on:,} of {count:,} {split} questions are in the training data",
                    trained_on=trained_on,
                    count=len(rows),
                    split=options.split,
                )
            )
        copied = with_cosines(nearest_rows(rows, training), embedder)
        whose = {**about, "label": files.NEAREST, "model": "nearest training answer"}
        write_evaluation(folder_of(files.NEAREST), copied, whose, seed=options.seed)

    model, is_base, single = None, False, rows
    for label in labels:
        of_split = (records, rows, asked) if label != files.JOINED else (both, both_rows, asked_both)
        asked_records, asked_rows, prompts = of_split
        of_base, with_references = label in (files.BASE, files.BASE_WITH), label in (files.TUNED_WITH, files.BASE_WITH)
        prompts = asked_with if with_references else prompts
        folder, whole = folder_of(label), recipe.method == "full"
        generation = {**settings.to_dict(), "batch_size": options.batch_size}
        generation |= {"decoder": source.decoder} if source.decoder != "plain" else {}
        count = options.retrieval if with_references else recipe.retrieval
        generation |= {"retrieval": count} if count else {}
        weights = [source.base] if of_base else merged.weights
        questions = [[record.to_json() for record in asked_records], prompts if count else []]
        key = answers_key(questions, weights, merged.tokenizer, merged.precision, recipe.model, label, generation)
        kept = None if options.overwrite else answered_before(folder, key, asked_rows)
        if writes and not kept and not options.overwrite:
            say_what_is_replaced(folder, {"model": recipe.model, "generation": generation})
        wait_for_all()  # the first process replaces files that all have to read before
        if kept:
            again = tr(
                "{label}: the answers of an earlier evaluation are scored again (--overwrite generates new ones)",
                label=tr(label),
            )
            say(again)
            answers, whose = kept
        else:
            if model is None or (whole and of_base != is_base):
                model = None  # frees the first model before the second is loaded
                model, tokenizer = merged.load() if options.merged else load_run(options.run, base=of_base)
                is_base = of_base
            of = {"label": tr(label), "count": len(asked_records), "data": data_dir, "split": options.split}
            say(tr("{label} model, {count:,} records of {data}/{split}", **of))
            uncovered = of_base and not whole
            with model.disable_adapter() if uncovered else contextlib.nullcontext():
                how = (settings, options.batch_size, folder, key, source.decoder)
                answered = predict(model, tokenizer, asked_rows, prompts, *how)
            answers, seconds = answered.rows, answered.answering_seconds
            told = {"model": tr(label), "count": len(asked_rows), "seconds": format_seconds(seconds)}
            say(tr("{model}: {count:,} questions answered in {seconds}", **told))
            timing = (round(seconds, 3), round(answered.references_seconds, 3), round(len(asked_rows) / seconds, 3))
            whose = dict(zip(WHOSE, (label, recipe.model, generation, key, *timing, world_size()), strict=True))
        single = answers if label == files.TUNED else single
        whose |= {"coverage": coverage(answers, single)} if label == files.JOINED else {}
        if writes:
            write_evaluation(folder, with_cosines(answers, embedder), {**about, **whose}, seed=options.seed)
        if label == files.JOINED:
            say(coverage_line(whose["coverage"]))
        delete_all_partial_results(folder)
    end_processes()
    if options.merged:
        return
    named, page = (f" --data {data_dir}", f"{options.run.name}-{data_dir.name}") if place else ("", options.run.name)
    command = f".venv/bin/python scripts/report.py {options.run} --out reports/{page} --split {options.split}{named}"
    say_next(tr("next: {command}", command=command))


if __name__ == "__main__":
    run_script(main, speaks=first_to_say)
