"""Find settings that fit the data: learning rate, batch size and epochs, judged by the validation split.

    python scripts/tune.py scripts/recipes/demo.yaml --data train.csv --out runs/tuning
    python scripts/tune.py scripts/recipes/qlora_12.8b.yaml --data data/mine --epochs 0.25 0.5 1 --batches 1 4

Six settings, the recipe's own first, train for one epoch, the better three for two, the better two of these for four
(--epochs); it ends earlier where longer training does not help. Each trial is a run of train.py under `accelerate
launch`, and the loss on the validation split decides; the test split is not read. Recipe keys and TrainingArguments
names as flags hold for every trial. The same command goes on where it stopped.
Keeps the best run whole, and of the others all but their weights. Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped
early with everything saved.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from llm_qa import files
from llm_qa.config.recipe import Recipe, load_recipe, recipe_flags
from llm_qa.console import ArgumentParser, UserError, positive_int, positive_number, run_script, say
from llm_qa.data.preparation_flags import add_preparation_flags, preparation_options
from llm_qa.language import later, tr
from llm_qa.migrations import renamed_flags
from llm_qa.tuning.settings import (
    EPOCHS,
    Setting,
    check_tunable,
    first_settings,
    flags,
    left_at_most,
    overrides,
)

SCRIPTS = Path(os.path.relpath(Path(__file__).parent))  # as it stands in the command that is shown
DECIDED = {
    "learning_rate": later("give the values to try with --learning-rates"),
    "global_batch_size": later("give the sizes to try with --batches"),
    "num_train_epochs": later("give the epochs of each round with --epochs"),
    "keep": later("each trial keeps its best weights, so leave it out"),
}
SINGLE_GPU = SCRIPTS.parent / "accelerate_configs" / "single_gpu.yaml"


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """The script's own flags, and the recipe with those for train.py laid over it; every setting is checked."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="a file of scripts/recipes/")
    parser.add_argument("--data", nargs="+", help="a prepared folder, or raw files (default: the bundled data)")
    parser.add_argument("--out", type=Path, help="where trials and table go (default: runs/<recipe>-tuning)")
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=positive_number,
        default=[],
        help="instead of the recipe's, 3 times and a third",
    )
    parser.add_argument(
        "--batches", nargs="+", type=positive_int, default=[], help="sequences an update; combined with every rate"
    )
    parser.add_argument(
        "--epochs", nargs="+", type=positive_number, default=list(EPOCHS), help="of each round (default: 1 2 4)"
    )
    parser.add_argument("--config-file", type=Path, default=SINGLE_GPU, help="the accelerate config of every trial")
    parser.add_argument("--num-processes", type=positive_int, help="GPUs of a trial, where the config leaves it open")
    add_preparation_flags(parser)
    options, rest = parser.parse_known_args(renamed_flags(sys.argv[1:]))
    if options.epochs != sorted(set(options.epochs)):
        raise UserError(
            tr(
                "--epochs {epochs}: every round needs more than the last.",
                epochs=" ".join(f"{e:g}" for e in options.epochs),
            )
        )
    options.given = given = recipe_flags(rest)
    for key, instead in DECIDED.items():
        if key in given:
            raise UserError(
                tr("--{flag} is what the search decides: {instead}.", flag=key.replace("_", "-"), instead=tr(instead))
            )
    recipe = load_recipe(options.recipe, given)
    check_tunable(recipe)
    for rate, batch in first_settings(recipe, options.learning_rates, options.batches):
        load_recipe(options.recipe, {**given, **overrides(recipe, Setting(rate, batch, options.epochs[0]))})
    files.check_exists(options.data or (), "--data")
    files.check_exists([options.config_file], "--config-file")
    options.out = options.out or Path("runs") / f"{options.recipe.stem}-tuning"
    return options, recipe


def main() -> int:
    """Phases: options, data, trials, table."""
    options, recipe = parse_arguments()
    # Imported here and not above: help and mistakes answer without the seconds that these take.
    from llm_qa.training.data_sets import open_records
    from llm_qa.training.lock import hold_lock
    from llm_qa.tuning.search import STATE, TABLE, Search
    from llm_qa.tuning.trial import Signals
    from llm_qa.tuning.validation import validation_text

    records = open_records(options.data, preparation_options(options))
    text = validation_text(records, recipe)
    search = Search(
        options.out, recipe, records.sha256(), text, options.epochs, options.learning_rates, options.batches
    )
    launch = ["--quiet", "--config_file", str(options.config_file)]
    if options.num_processes:
        launch += ["--num_processes", str(options.num_processes)]

    def training(keys: dict[str, object], run: Path) -> list[str]:
        script = [str(SCRIPTS / "train.py"), str(options.recipe), "--data", str(records.folder), "--run", str(run)]
        return [*launch, *script, *flags({**options.given, **keys})]

    hold_lock(options.out)
    search.load()
    trials, epochs = left_at_most(search.first, search.epochs, search.losses)
    if trials:
        say(
            tr(
                "{recipe} on {folder}: at most {trials} trials, {epochs:g} epochs together, in {out}",
                recipe=options.recipe,
                folder=records.folder,
                trials=trials,
                epochs=epochs,
                out=options.out,
            )
        )
    python = [sys.executable, "-m", "accelerate.commands.launch"]
    with Signals().caught() as signals:
        best = search.run(lambda keys, run: [*python, *training({"sample_answers": 0, **keys}, run)], signals)

    run = options.out / best.setting.name
    again = shlex.join(["accelerate", "launch", *training(overrides(recipe, best.setting), Path("runs/best"))])
    search.save(again)
    files.write_text(options.out / TABLE, f"{search.table()}\n\n{again}\n")
    say(f"\n{search.table()}\n")
    say(tr("best: {setting}. Its run is whole, and can be asked and evaluated: {run}", setting=best.setting, run=run))
    say(tr("kept of the others: recipe, log and output; their weights and all checkpoints are removed"))
    say(tr("the command that trains with it:"))
    say(again, as_is=True)
    say(tr("written to {path} and {table}", path=options.out / STATE, table=TABLE))
    return 0


if __name__ == "__main__":
    run_script(main)
