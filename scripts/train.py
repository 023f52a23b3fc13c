"""Train one recipe, or go on with a run that was interrupted.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml scripts/train.py scripts/recipes/tiny.yaml \\
        --data train.csv --run runs/mine --learning-rate 1e-4

--data takes a folder made by prepare_data.py, or raw files, which it prepares first, by prepare_data.py's flags; left
out, the bundled data.
Every recipe key and every TrainingArguments name is also a flag. The same command again goes on where a run stopped.
Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped early with everything saved.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from llm_qa import files
from llm_qa.config.recipe import Recipe, load_recipe, recipe_flags
from llm_qa.console import ArgumentParser, UserError, counted, is_main_process, run_script, say
from llm_qa.data.preparation_flags import add_preparation_flags, preparation_options
from llm_qa.distributed import first_to_say, run_on_main
from llm_qa.language import tr
from llm_qa.migrations import renamed_flags
from llm_qa.training.agreement import check_ranks_agree
from llm_qa.training.lock import hold_lock
from llm_qa.training.run_signature import KINDS, run_signature
from llm_qa.training.watchdog import SILENCE_SECONDS, Watchdog


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """The script's own flags and the resolved recipe; bad ones end here, before anything expensive."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="a file of scripts/recipes/")
    parser.add_argument("--data", nargs="+", help="a prepared folder, or raw files (default: the bundled data)")
    parser.add_argument("--run", type=Path, help="the run's folder (default: runs/<recipe>)")
    parser.add_argument("--resume", default="auto", help="auto, never, or the path of a checkpoint")
    parser.add_argument(
        "--allow-change",
        nargs="+",
        default=[],
        choices=KINDS,
        help="resume although this has changed since the run began",
    )
    parser.add_argument(
        "--on-save-error", default="continue", choices=("continue", "stop"), help="when a checkpoint cannot be saved"
    )
    parser.add_argument(
        "--auto-micro-batch",
        action="store_true",
        help="out of GPU memory: halve micro_batch_size and go on; under ZeRO-3 begin with the largest that should fit",
    )
    parser.add_argument(
        "--rank-timeout",
        type=float,
        default=SILENCE_SECONDS,
        help="seconds of silence after which a process counts as dead and all are stopped",
    )
    parser.add_argument("--dry-run", action="store_true", help="print parameters and steps; touch no weights")
    add_preparation_flags(parser)
    arguments, rest = parser.parse_known_args(renamed_flags(sys.argv[1:]))
    recipe = load_recipe(arguments.recipe, recipe_flags(rest))
    files.check_exists(arguments.data or (), "--data")
    if arguments.documents and not recipe.retrieval:
        raise UserError(
            tr(
                "--documents {documents} would not be read, as retrieval is 0: set --retrieval to "
                "how many references stand before a question, or leave --documents out.",
                documents=arguments.documents,
            )
        )
    arguments.run = arguments.run or Path("runs") / arguments.recipe.stem
    return arguments, recipe


def main() -> int:
    """Phases: options, checks, run folder, data, model, training, saving."""
    options, recipe = parse_arguments()
    # Imported here and not above: help and mistakes answer without the seconds that these take.
    from llm_qa.planning import dry_run, prediction, preflight, this_gpu
    from llm_qa.training import data_sets, finish, model_setup
    from llm_qa.training.callbacks.run_callbacks import build_callbacks
    from llm_qa.training.callbacks.samples import SampleAnswers, choose_samples
    from llm_qa.training.callbacks.tracking import take_trackers, warn_of_sent_texts
    from llm_qa.training.checkpoint.resume import check_layout, make_universal, resume_point
    from llm_qa.training.checkpoint.trainer_hooks import SavingOptions
    from llm_qa.training.internals import load_universal
    from llm_qa.training.out_of_memory import memory_for_training
    from llm_qa.training.run_folder import is_finished, open_run
    from llm_qa.training.strategy import end_together, quiet_other_ranks, read_strategy, start_engine
    from llm_qa.training.trainer import build_trainer, schedule_validation, training_arguments

    # --- checks: refuse what cannot run here before anything is read --------------------------------------------
    strategy, preparation, anew = read_strategy(), preparation_options(options), options.resume == "never"
    if options.dry_run:
        if is_main_process():
            say(dry_run.dry_run(recipe, options.data, strategy, preparation))
        return 0
    precision = preflight.check_machine(recipe, strategy)
    dry_run.check_context(recipe)
    gpu = prediction.gpu_here()
    quiet_other_ranks()
    requested = recipe
    recipe = preflight.first_micro_batch(recipe, strategy, options.run, auto=options.auto_micro_batch, anew=anew)
    arguments = training_arguments(recipe, precision, strategy, options.run)

    # --- run folder: held by this command, of the same data and recipe as before --------------------------------
    start_engine(strategy)
    watchdog = Watchdog(options.rank_timeout)
    watchdog.start()
    run_on_main(lambda: hold_lock(options.run))
    checkpoint = run_on_main(lambda: resume_point(options.run, options.resume))
    convert_to_universal = checkpoint is not None and run_on_main(lambda: check_layout(checkpoint, strategy))
    with arguments.main_process_first(local=False):
        records = data_sets.open_records(options.data, preparation)
        source = model_setup.base_source(recipe)
        tokenizer, prompt = model_setup.load_tokenizer_for(recipe, source)
    requested, recipe = replace(requested, prompt=prompt), replace(recipe, prompt=prompt)
    signature = run_signature(requested, records.sha256(), strategy.processes)
    resuming = {"resume": options.resume, "checkpoint": checkpoint, "allowed": options.allow_change}
    run_on_main(lambda: open_run(options.run, requested, records.folder, signature, **resuming))
    check_ranks_agree(options.run, signature)
    if run_on_main(lambda: is_finished(options.run, recipe)):
        say(tr("{run} is already finished; name another --run, or set it aside with --resume never", run=options.run))
        end_together(watchdog.stop)
        return 0

    # --- data: tokenised, and packed where the model keeps packed documents apart --------------------------------
    records = data_sets.with_references(records, recipe, options.run)
    pairs = data_sets.tokenize_training_pairs(tokenizer, records, recipe, options.run)
    before = recipe
    recipe = data_sets.keep_documents_apart(recipe, pairs, source, strategy, options.run)
    if recipe != before:
        arguments = training_arguments(recipe, precision, strategy, options.run)
    data = data_sets.build_data_sets(tokenizer, records, pairs, recipe, strategy)
    schedule_validation(arguments, recipe, data.train, data.validation)
    say(data_sets.report_data(tokenizer, records, data, recipe))
    data_sets.warn_of_few_updates(arguments, data.train, recipe)

    # --- model: the base, what trains, the fast path -------------------------------------------------------------
    trainable = model_setup.load_trainable(source, tokenizer, recipe, precision, strategy)
    memory_handling = {"recipe": recipe, "run_dir": options.run, "strategy": strategy, "fit": options.auto_micro_batch}
    with memory_for_training(**memory_handling):
        fast_path = model_setup.set_up_fast_path(trainable.model, recipe, precision, strategy, arguments, data.train)
    predicted = prediction.predict_run(recipe, strategy, fast_path, data, arguments, gpu)

    # --- training ------------------------------------------------------------------------------------------------
    samples, trackers = choose_samples(tokenizer, records, recipe, strategy), take_trackers(arguments)
    warn_of_sent_texts(trackers, len(samples))
    callbacks = build_callbacks(
        recipe,
        options.run,
        data.train,
        trainable.linear_parameters,
        seconds_to_save=lambda: trainer.seconds_to_save(),  # of the trainer below, which needs the callbacks first
        from_universal=convert_to_universal,
        predicted=predicted,
        samples=SampleAnswers(options.run, tokenizer, samples, trackers),
        trackers=trackers,
    )
    stop_on_error, keep_best = options.on_save_error == "stop", recipe.keep == "best"
    saving = SavingOptions.of_run(options.run, signature, stop_on_error=stop_on_error, keep_best=keep_best)
    trainer = build_trainer(
        trainable.model, tokenizer, arguments, data.train, data.validation, callbacks.in_order(), saving
    )
    if checkpoint:
        say(tr("going on from {checkpoint}", checkpoint=checkpoint))
    if checkpoint and convert_to_universal:
        run_on_main(lambda: make_universal(checkpoint))
        load_universal(arguments)
    say(
        tr(
            "training: {sequences} of {tokens:,} tokens per update ({micro} per forward pass, {steps}) "
            "on {strategy}, {device}",
            sequences=counted(recipe.global_batch_size, "sequence"),
            tokens=data.train.capacity,
            micro=arguments.per_device_train_batch_size,
            steps=counted(arguments.gradient_accumulation_steps, "gradient accumulation step"),
            strategy=strategy,
            device=this_gpu.device_name(),
        )
    )
    callbacks.stop.catch_signals()
    with memory_for_training(**memory_handling):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    # --- saving --------------------------------------------------------------------------------------------------
    run = finish.TrainedRun(options.run, recipe, strategy, data, trainable, fast_path, callbacks, trainer)
    kept = finish.best_of(run)
    summary = finish.write_summary(run, kept)
    if run.finished:
        finish.save_weights(run, kept, source, tokenizer, summary)
    end_together(watchdog.stop)
    if not run.finished:
        raise finish.stopped_early(run)
    return 0


if __name__ == "__main__":
    run_script(main, speaks=first_to_say)
