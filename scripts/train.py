"""Train one recipe, or go on with a run that was interrupted.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml scripts/train.py scripts/recipes/tiny.yaml \
        --data train.csv --run runs/mine --learning-rate 1e-4

--data takes a folder made by prepare_data.py, or raw files, which it prepares first, by prepare_data.py's flags; left
out, the bundled data.
Every recipe key and every TrainingArguments name is also a flag. The same command again goes on where a run stopped.
Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped early with everything saved.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llm_qa import files
from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe, load_recipe, recipe_flags
from llm_qa.console import StoppedEarly, format_seconds, is_main_process, run_script, say
from llm_qa.data.preparation import prepared_folder
from llm_qa.data.preparation_flags import add_preparation_flags, preparation_options
from llm_qa.data.records import open_split
from llm_qa.distributed import first_to_say, gather_over_ranks, run_on_main
from llm_qa.migrations import renamed_flags, stamped
from llm_qa.training.agreement import check_ranks_agree
from llm_qa.training.lock import hold_lock
from llm_qa.training.run_signature import KINDS, run_signature
from llm_qa.training.watchdog import SILENCE_SECONDS, Watchdog

if TYPE_CHECKING:
    from llm_qa.data.packing import TooLong


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """The script's own flags and the resolved recipe; bad ones end here, before anything expensive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", type=Path, help="a file of scripts/recipes/")
    parser.add_argument("--data", nargs="+", help="a prepared folder, or raw files (default: the bundled data)")
    parser.add_argument("--run", type=Path, help="the run's folder (default: runs/<recipe>)")
    parser.add_argument("--resume", default="auto", help="auto, never, or the path of a checkpoint")
    parser.add_argument("--allow-change", nargs="+", default=[], choices=KINDS, help="go on though this has changed")
    parser.add_argument(
        "--on-save-error", default="continue", choices=("continue", "stop"), help="when a checkpoint cannot be saved"
    )
    parser.add_argument(
        "--auto-micro-batch",
        action="store_true",
        help="micro_batch_size by the GPU's memory (less, and under ZeRO-3 more)",
    )
    parser.add_argument(
        "--rank-timeout", type=float, default=SILENCE_SECONDS, help="seconds until a dead rank ends all"
    )
    parser.add_argument("--dry-run", action="store_true", help="print parameters and steps; touch no weights")
    add_preparation_flags(parser)
    arguments, rest = parser.parse_known_args(renamed_flags(sys.argv[1:]))
    recipe = load_recipe(arguments.recipe, recipe_flags(rest))
    files.check_exists(arguments.data or (), "--data")
    arguments.run = arguments.run or Path("runs") / arguments.recipe.stem
    return arguments, recipe


def report_too_long(run_dir: Path, too_long: list[TooLong], max_length: int) -> None:
    """Pairs that do not fit are set aside aloud: counted on the screen, listed in the run folder."""
    path = run_dir / files.REJECTED
    if is_main_process() and too_long:
        files.write_jsonl(path, [{**vars(pair), "reason": f"longer than max_length {max_length}"} for pair in too_long])
    if too_long:
        say(f"{len(too_long):,} pairs are longer than max_length {max_length} tokens and set aside, listed in {path}")


def main() -> int:
    """Phases: recipe, data, model, training, saving."""
    options, recipe = parse_arguments()
    # Imported here and not above: help and mistakes answer without the seconds that these take.
    import torch

    from llm_qa.data.packing import PackedDataset, tokenize_records
    from llm_qa.data.prompts import encode_documents, show_document
    from llm_qa.models.embedded import embedded_model
    from llm_qa.models.fast.plan import choose_fast_path
    from llm_qa.models.isolation import attention_of
    from llm_qa.models.left_out import left_out_report
    from llm_qa.models.loading import (
        EMBEDDED_BASE,
        align_special_tokens,
        check_tokenizer_fits,
        load_base,
        load_tokenizer,
    )
    from llm_qa.models.lora import add_lora, linear_parameters, parameter_counts, trainable_report
    from llm_qa.models.precision import gpu_capability, resolve_precision
    from llm_qa.models.registry import model_config
    from llm_qa.planning import cards, dry_run
    from llm_qa.training.callbacks.best import BestCheckpoint, check_early_stopping, choose_best
    from llm_qa.training.callbacks.energy import EnergyUsed
    from llm_qa.training.callbacks.logging import RealTokens, StepLog
    from llm_qa.training.callbacks.non_finite import StopOnNonFinite
    from llm_qa.training.callbacks.stopping import StopInTime
    from llm_qa.training.checkpoint.resume import check_layout, make_universal, resume_point
    from llm_qa.training.out_of_memory import (
        memory_for_loading,
        memory_for_training,
        micro_batch_file,
        with_stored_micro_batch,
    )
    from llm_qa.training.rows import one_document_a_row
    from llm_qa.training.run_folder import is_finished, open_run, save_final
    from llm_qa.training.strategy import (
        check_strategy,
        end_together,
        engine_report,
        final_weights,
        fit_precision,
        quiet_other_ranks,
        read_strategy,
        start_engine,
    )
    from llm_qa.training.trainer import build_trainer, training_arguments, use_fast_path, validate_in_time

    strategy = read_strategy()
    if options.dry_run:
        if is_main_process():
            say(dry_run.dry_run(recipe, options.data, strategy, preparation_options(options)))
        return 0
    dry_run.check_hardware(recipe, gpu_capability())
    dry_run.check_context(recipe)
    check_strategy(recipe, strategy, torch.cuda.device_count() if torch.cuda.is_available() else None)
    dry_run.check_fit(recipe, strategy)
    precision = fit_precision(resolve_precision(recipe, gpu_capability()), strategy)
    quiet_other_ranks()
    asked, recipe = recipe, with_stored_micro_batch(recipe, options.run) if options.resume != "never" else recipe
    if options.auto_micro_batch and (options.resume == "never" or not micro_batch_file(options.run).is_file()):
        recipe = dry_run.widest_pass(recipe, strategy)
    arguments = training_arguments(recipe, precision, strategy, options.run)
    start_engine(strategy)
    watchdog = Watchdog(options.rank_timeout)
    watchdog.start()
    run_on_main(lambda: hold_lock(options.run))
    checkpoint = run_on_main(lambda: resume_point(options.run, options.resume))
    reshape = checkpoint is not None and run_on_main(lambda: check_layout(checkpoint, strategy))

    # --- data ----------------------------------------------------------------------------------------------------
    with arguments.main_process_first(local=False):
        data_dir = prepared_folder(options.data, preparation_options(options))
        train_records = open_split(data_dir, "train")
        model_source = str(embedded_model(train_records)) if recipe.model == EMBEDDED_MODEL else recipe.model
    validation_records = open_split(data_dir, "validation", may_be_empty=True)
    signature = run_signature(asked, files.sha256_file(data_dir / files.MANIFEST), strategy.processes)
    opened = {"resume": options.resume, "checkpoint": checkpoint, "allowed": options.allow_change}
    run_on_main(lambda: open_run(options.run, asked, data_dir, signature, **opened))
    check_ranks_agree(options.run, signature)
    if run_on_main(lambda: is_finished(options.run, recipe)):
        say(f"{options.run} is already finished; name another --run, or set it aside with --resume never")
        end_together(watchdog.stop)
        return 0
    tokenizer = load_tokenizer(model_source)
    pairs, too_long = tokenize_records(tokenizer, train_records, recipe.max_length)
    report_too_long(options.run, too_long, recipe.max_length)
    train_set = PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed, recipe.global_batch_size)
    with memory_for_loading(recipe):
        attention = attention_of(model_config(model_source))
    if attention.usual:  # what else there is, load_base says
        say(attention.report)
    if recipe.pack_length and not attention.isolates:
        recipe = one_document_a_row(recipe, train_set, arguments.per_device_train_batch_size)
        recipe = with_stored_micro_batch(recipe, options.run)
        arguments = training_arguments(recipe, precision, strategy, options.run)
        train_set = PackedDataset(pairs, 0, recipe.loss_on, recipe.seed, recipe.global_batch_size)
    validation_set = None
    if validation_records:
        validation_pairs, _ = tokenize_records(tokenizer, validation_records, recipe.max_length, what="validation")
        at_once = arguments.per_device_eval_batch_size * strategy.processes
        validation_set = PackedDataset(validation_pairs, recipe.pack_length, recipe.loss_on, recipe.seed, at_once)
    check_early_stopping(recipe, validation_set is not None and arguments.eval_strategy != "no")
    if validation_set is not None:
        validate_in_time(arguments, recipe, len(train_set.packs))
    say(
        f"data: {data_dir}, {len(train_records):,} records, {len(pairs):,} pairs, {len(pairs.tokens):,} tokens in "
        f"{len(train_set.packs):,} packs, {train_set.efficiency:.1%} full"
    )
    record = next(iter(train_records))
    example = encode_documents(tokenizer, [(record.questions[0], record.answers[0], record.context)])[0]
    say(f"one example, what is trained between ⟦ and ⟧:\n{show_document(tokenizer, example, recipe.loss_on)}")

    # --- model ---------------------------------------------------------------------------------------------------
    say(f"model: {recipe.model}, {precision.why}")
    with memory_for_loading(recipe):
        model = load_base(model_source, precision, on_gpu=strategy.zero_stage < 3)
        check_tokenizer_fits(tokenizer, model)
        align_special_tokens(model, tokenizer)
        linears = linear_parameters(model)
        if recipe.method == "lora":
            model = add_lora(model, recipe, precision.trains_in)
    say("\n".join([trainable_report(model), *left_out_report(model, recipe, precision)]))
    total, trainable = parameter_counts(model)
    rows = arguments.per_device_train_batch_size
    with memory_for_training(recipe, options.run, strategy, fit=options.auto_micro_batch):
        path = choose_fast_path(
            model,
            recipe,
            precision,
            tokens=rows * train_set.capacity,
            max_label_tokens=rows * train_set.max_label_tokens,
            zero_stage=strategy.zero_stage,
            capability=gpu_capability(),
        )
    use_fast_path(arguments, path)
    say(path.report)

    # --- training ------------------------------------------------------------------------------------------------
    step_log = StepLog(
        options.run, cards.flops_per_token(linears, recipe.method == "full"), cards.peak_flops(cards.device_name())
    )
    stop, energy = StopInTime(recipe.max_hours), EnergyUsed()
    # Tokens are counted after the wish to stop and save.
    callbacks = [stop, RealTokens(), step_log, energy, StopOnNonFinite(train_set), BestCheckpoint(recipe)]
    saving = {"stop_when_unsaved": options.on_save_error == "stop", "keep_best": recipe.keep == "best"}
    trainer = build_trainer(model, tokenizer, arguments, train_set, validation_set, callbacks, signature, **saving)
    if checkpoint:
        say(f"going on from {checkpoint}")
    if reshape:
        run_on_main(lambda: make_universal(checkpoint))
        arguments.deepspeed_plugin.hf_ds_config.config["checkpoint"] = {"load_universal": True}
    say(
        f"training: {recipe.global_batch_size} sequences of {train_set.capacity} tokens per update "
        f"({arguments.per_device_train_batch_size} per forward pass, {arguments.gradient_accumulation_steps} gradient "
        f"accumulation steps) on {strategy}, {cards.device_name()}"
    )
    stop.seconds_to_save = trainer.seconds_to_save
    stop.catch_signals()
    with memory_for_training(recipe, options.run, strategy, fit=options.auto_micro_batch):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    # --- saving --------------------------------------------------------------------------------------------------
    state, seconds = trainer.state, step_log.elapsed()
    ends_with_best = stop.reason is None and recipe.keep == "best"
    kept = run_on_main(lambda: choose_best(state, options.run)) if ends_with_best else None
    summary = {
        "finished": stop.reason is None,
        "kept": {"step": kept.step, "validation_loss": kept.validation_loss} if kept else None,
        "steps": state.global_step,
        "epochs": state.epoch,
        "records": len(train_records),
        "pairs": len(pairs),
        files.ANSWER_TOKENS: pairs.answer_tokens(99),
        "tokens": state.num_input_tokens_seen,
        "wall_seconds": round(seconds, 3),
        "start_up_seconds": step_log.start_up_seconds,
        "tokens_per_second": round(state.num_input_tokens_seen / seconds, 1),
        "mfu": step_log.mfu(state.num_input_tokens_seen / seconds / strategy.processes),
        "seconds_per_epoch": round(seconds / state.epoch, 3),
        "peak_memory_bytes": gather_over_ranks(cards.peak_memory_bytes(), arguments.device),
        "energy_joules": energy.joules(),
        "device": cards.device_name(),
        "strategy": strategy.name,
        "path": path.report,
        "processes": strategy.processes,
        "engine": engine_report(trainer),
        "total_parameters": total,
        "trainable_parameters": trainable,
    }
    if is_main_process():
        files.write_json(options.run / files.TRAINING, stamped(summary))
    if stop.reason is not None:
        end_together(watchdog.stop)
        raise StoppedEarly(
            f"stopped early at step {state.global_step} of {state.max_steps} ({stop.reason}); everything is saved in "
            f"{options.run}, and the same command goes on"
        )
    weights = kept.checkpoint if kept and kept.checkpoint else final_weights(trainer)

    def save() -> Path:
        if recipe.model == EMBEDDED_MODEL:
            shutil.copytree(model_source, options.run / EMBEDDED_BASE, dirs_exist_ok=True)
        unwrapped = trainer.accelerator.unwrap_model(trainer.model)
        return save_final(unwrapped, weights, tokenizer, options.run, recipe, summary)

    final = run_on_main(save)
    say(
        f"done: {state.global_step} steps in {format_seconds(seconds)}, {summary['tokens_per_second']:,.0f} tok/s; "
        f"{final} is saved and read back equal"
        + (f"; it holds the best checkpoint ({kept}; --keep last keeps the last)" if kept else "")
    )
    end_together(watchdog.stop)
    return 0


if __name__ == "__main__":
    run_script(main, speaks=first_to_say)
