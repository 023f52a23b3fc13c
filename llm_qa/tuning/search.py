"""The search: trials one after another, a file that a stopped search goes on from, one table at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.config.recipe import Recipe, stored_recipe
from llm_qa.console import Failed, StoppedEarly, UserError, counted, format_seconds, format_table, say
from llm_qa.migrations import read_json, stamped
from llm_qa.training.run_signature import FREE
from llm_qa.tuning.settings import Setting, first_settings, left_at_most, overrides, round_settings
from llm_qa.tuning.trial import Result, Signals, remove_weights, result_of, train
from llm_qa.tuning.validation import ValidationText

STATE, TABLE = "tuning.json", "tuning.txt"
# (keys of the recipe that a trial changes, its run folder) -> the command that trains it
Command = Callable[[dict[str, Any], Path], list[str]]


@dataclass
class Search:
    """A search in `folder`: what it tries, and what it has found. `text` is None where bits cannot be told."""

    folder: Path
    recipe: Recipe
    data_sha256: str
    text: ValidationText | None
    epochs: Sequence[float]
    rates: Sequence[float] = ()
    batches: Sequence[int] = ()
    results: list[Result] = field(default_factory=list)

    @property
    def first(self) -> list[tuple[float, int]]:
        """(learning rate, batch) of the first round."""
        return first_settings(self.recipe, self.rates, self.batches)

    @property
    def losses(self) -> dict[Setting, float]:
        """Validation losses of the finished trials, infinite for those that diverged."""
        return {
            result.setting: math.inf if result.validation_loss is None else result.validation_loss
            for result in self.results
        }

    def best(self) -> Result | None:
        """The trial with the lowest validation loss; of equal ones the first."""
        finished = [result for result in self.results if result.validation_loss is not None]
        return min(finished, key=lambda result: self.losses[result.setting], default=None)

    def load(self) -> None:
        """Take the finished trials of an earlier start; UserError where it searched with other data or a recipe."""
        path = self.folder / STATE
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UserError(f"--out {self.folder} is not empty and holds no search: name another folder.")
            return
        stored = read_json(path)
        before = stored_recipe(stored["recipe"], str(path)).to_dict()
        now = self.recipe.to_dict()
        changed = [key for key in sorted({*before, *now} - {*FREE}) if before.get(key) != now.get(key)]
        words = [f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in changed]
        if stored["data_sha256"] != self.data_sha256:
            words.append(f"the data {stored['data_sha256'][:12]} -> {self.data_sha256[:12]}")
        if words:
            raise UserError(
                f"{self.folder} holds a search with another setting ({'; '.join(words)}): name another folder with "
                "--out, or give what it began with."
            )
        self.results = [Result.from_json(row) for row in stored["trials"]]

    def save(self, command: str = "") -> None:
        """Write what was found so far."""
        best = self.best()
        rows = [{**result.to_json(), "bits_per_character": self.bits(result)} for result in self.results]
        about = {
            "finished": bool(command),
            "recipe": self.recipe.to_dict(),
            "data_sha256": self.data_sha256,
            "validation": vars(self.text) if self.text else None,
            "trials": rows,
            "best": best.setting.name if best else None,
            "command": command or None,
        }
        files.write_json(self.folder / STATE, stamped(about))

    def bits(self, result: Result) -> float | None:
        """Bits per character of the validation answers."""
        if self.text is None or result.validation_loss is None:
            return None
        return self.text.bits_per_character(result.validation_loss)

    def run(self, command: Command, signals: Signals) -> Result:
        """Try until the search is over; the best. Raises StoppedEarly on a signal, Failed where a training failed."""
        self.save()
        if self.results:
            say(f"going on: {counted(len(self.results), 'finished trial')} in {self.folder}")
        while settings := round_settings(self.first, self.epochs, self.losses):
            setting = next(setting for setting in settings if setting not in self.losses)
            if signals.received:
                raise StoppedEarly(
                    f"{signals.received}: stopped; the finished trials are kept, and the same command goes on"
                )
            self.announce(setting)
            run = self.folder / setting.name
            code, seconds = train(command(overrides(self.recipe, setting), run), run, signals, setting.name)
            self.results.append(result_of(setting, run, code, seconds, signals))
            self.save()
            self.tell(self.results[-1])
            self.clear()
        best = self.best()
        if best is None:
            raise Failed(
                "Every learning rate that was tried made training diverge: name lower ones with --learning-rates, in "
                "another --out."
            )
        return best

    def announce(self, setting: Setting) -> None:
        """Say what runs next, and how long it and all that is left may take."""
        trials, epochs = left_at_most(self.first, self.epochs, self.losses)
        done = len(self.results)
        this, all_left = self.estimate(setting.epochs, 1), self.estimate(epochs, trials)
        time = f"about {this}, all that is left at most {all_left}" if this else "its time tells that of the others"
        say(f"trial {done + 1} of at most {done + trials}: {setting}; {time}")

    def estimate(self, epochs: float, trials: int) -> str:
        """How long so many trials of together so many epochs take, from those that are finished; '' without one."""
        trained = [result for result in self.results if result.epochs_trained]
        if not trained:
            return ""
        per_epoch = sum(r.training_seconds for r in trained) / sum(r.epochs_trained for r in trained)
        to_start = sum(r.seconds - r.training_seconds for r in trained) / len(trained)
        return format_seconds(max(1, per_epoch * epochs + to_start * trials))

    def tell(self, result: Result) -> None:
        """Say what came of a trial."""
        if result.validation_loss is None:
            say(f"  {result.setting}: diverged, the learning rate is too high")
            return
        bits = self.bits(result)
        value = f"{bits:.4f} bits per character, " if bits is not None else ""
        best = " (the lowest so far)" if self.best() is result else ""
        early = f" of {result.updates} updates" if result.best_update < result.updates else ""
        say(
            f"  validation {value}loss {result.validation_loss:.4f}{best}, after update {result.best_update}{early}, "
            f"{format_seconds(result.seconds)}"
        )

    def clear(self) -> None:
        """Delete the checkpoints of every finished trial, and the weights of all but the best."""
        best = self.best()
        for result in self.results:
            remove_weights(self.folder / result.setting.name, checkpoints_only=result is best)

    def table(self) -> str:
        """Every trial, by bits per character."""
        best = self.best()
        rows = []
        for result in sorted(self.results, key=lambda result: self.losses[result.setting]):
            bits, loss = self.bits(result), result.validation_loss
            rows.append(
                [
                    f"{result.setting.learning_rate:g}",
                    f"{result.setting.batch}",
                    f"{result.setting.epochs:g}",
                    "diverged" if loss is None else f"{loss:.4f}",
                    "" if bits is None else f"{bits:.4f}",
                    f"{result.best_update:,} of {result.updates:,}",
                    f"{result.seconds:,.0f}",
                    "best" if result is best else "",
                ]
            )
        titles = [
            "learning rate",
            "batch",
            "epochs",
            "validation loss",
            "bits per character",
            "update kept",
            "seconds",
            "",
        ]
        return format_table(titles, rows)
