"""Which settings are tried, in order of promise, and which of them are trained longer: successive halving.

A round trains its settings for the same number of epochs, each with a whole learning rate schedule, so that every
trial is a run that one could keep. The better half of a round is trained anew for the epochs of the next one, which is
how the number of epochs is searched too. It ends where training longer does not help any more.
Successive halving: Jamieson and Talwalkar, 2016 (arXiv:1502.07943).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError

RATES = (1.0, 3.0, 1 / 3)  # times the recipe's learning rate
BATCH_FACTOR = 4  # the other batch size is so many times the recipe's, or that part of it
EPOCHS = (1.0, 2.0, 4.0)
PATIENCE = 2  # evaluations without a lower validation loss that end a trial, where the recipe has no other number


@dataclass(frozen=True)
class Setting:
    """What the search chooses; `batch` is the sequences of an update (global_batch_size)."""

    learning_rate: float
    batch: int
    epochs: float

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"lr{self.learning_rate:g}-batch{self.batch}-epochs{self.epochs:g}"

    def __str__(self) -> str:
        epochs = f"{self.epochs:g} epoch" + ("" if self.epochs == 1 else "s")
        return f"learning rate {self.learning_rate:g}, batch {self.batch}, {epochs}"


def three_digits(value: float) -> float:
    """A number that is shown as it is used: 0.0016666 -> 0.00167."""
    return float(f"{value:.3g}")


def first_settings(recipe: Recipe, rates: Sequence[float] = (), batches: Sequence[int] = ()) -> list[tuple[float, int]]:
    """(learning rate, batch) of the first round, the most promising first: the recipe's own.

    `rates` and `batches` are all combined where given. Else three learning rates are tried with the recipe's batch,
    then with one four times as large (from 4 sequences on, as small). The learning rate goes with the square root of
    the batch there, as Adam's noise does (Malladi et al., 2022, arXiv:2205.10287).
    """
    own_rate, own_batch = recipe.training.get("learning_rate", 5e-5), recipe.global_batch_size
    if rates or batches:
        return [(rate, batch) for batch in batches or (own_batch,) for rate in rates or (own_rate,)]
    other = own_batch // BATCH_FACTOR if own_batch >= BATCH_FACTOR else own_batch * BATCH_FACTOR
    return [
        (three_digits(own_rate * factor * math.sqrt(batch / own_batch)), batch)
        for batch in (own_batch, other)
        for factor in RATES
    ]


def round_settings(
    first: Sequence[tuple[float, int]], epochs: Sequence[float], losses: Mapping[Setting, float]
) -> list[Setting]:
    """The settings of the current round: the first one that is not all in `losses`; empty when the search is over.

    `losses` are validation losses of finished trials, infinite for one that diverged. Of each round the better half
    goes on, one of an odd number more; the search is over when the last round has no lower loss than those before it.
    """
    pairs, before = list(first), math.inf
    for number, length in enumerate(epochs):
        settings = [Setting(rate, batch, length) for rate, batch in pairs]
        if any(setting not in losses for setting in settings):
            return settings
        ranked = sorted(settings, key=lambda setting: losses[setting])  # of equals the more promising first
        finite = [setting for setting in ranked if math.isfinite(losses[setting])]
        lowest = losses[ranked[0]]
        if not finite or (number and lowest >= before):
            return []
        before = min(before, lowest)
        pairs = [(setting.learning_rate, setting.batch) for setting in finite[: math.ceil(len(settings) / 2)]]
    return []


def left_at_most(
    first: Sequence[tuple[float, int]], epochs: Sequence[float], losses: Mapping[Setting, float]
) -> tuple[int, float]:
    """(trials, epochs) that are left at most: those of this round that are not finished, and all later rounds."""
    current = round_settings(first, epochs, losses)
    if not current:
        return 0, 0.0
    left = [setting for setting in current if setting not in losses]
    trials, total, width = len(left), sum(setting.epochs for setting in left), len(current)
    for length in epochs[list(epochs).index(current[0].epochs) + 1 :]:
        width = math.ceil(width / 2)
        trials, total = trials + width, total + width * length
    return trials, total


def overrides(recipe: Recipe, setting: Setting) -> dict[str, object]:
    """Recipe keys of a trial: the setting, the best weights kept, and an end where the validation loss rises."""
    micro = math.gcd(recipe.micro_batch_size, setting.batch)
    return {
        "learning_rate": setting.learning_rate,
        "global_batch_size": setting.batch,
        "micro_batch_size": micro,
        "num_train_epochs": setting.epochs,
        "keep": "best",
        "early_stopping": recipe.early_stopping or PATIENCE,
    }


def flags(keys: Mapping[str, object]) -> list[str]:
    """Recipe keys as flags of train.py."""
    return [
        word
        for key, value in keys.items()
        for word in (f"--{key.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    ]


def check_tunable(recipe: Recipe) -> None:
    """UserError for a recipe whose length does not follow its epochs, or that has no validation loss."""
    if recipe.training.get("max_steps", -1) > 0:
        raise UserError(
            f"max_steps {recipe.training['max_steps']} decides how long every trial trains, so that their epochs could "
            "not be compared: leave out --max-steps and give --epochs, parts of an epoch too."
        )
    if str(recipe.training.get("eval_strategy", "steps")) == "no":
        raise UserError("eval_strategy no leaves no validation loss to judge by: leave out --eval-strategy.")
