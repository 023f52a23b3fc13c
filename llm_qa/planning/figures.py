"""What is said of a run before it and after it: its figures, and whether its updates are few."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_qa.console import counted, format_seconds
from llm_qa.language import tr

FEW_UPDATES = 50
# Without a tokenizer: tokens of polyglot-ko's a character of Korean prose, roughly, and characters of a pair's format.
TOKENS_PER_CHARACTER, FORMAT_CHARACTERS = 0.6, 20


@dataclass(frozen=True)
class Figures:
    """Peak bytes allocated on a GPU, real tokens a second of all GPUs together, seconds of the whole training."""

    peak_bytes: float
    tokens_per_second: float
    seconds: float

    def __str__(self) -> str:
        return tr(
            "peak {gib:,.1f} GiB of a GPU, {rate:,.0f} tok/s, {time}",
            gib=self.peak_bytes / 2**30,
            rate=self.tokens_per_second,
            time=format_seconds(self.seconds),
        )


def few_updates(updates: int, epochs: float, batch: int, *, warms_up: bool) -> str | None:
    """A sentence where a run of `epochs` and a global batch of `batch` has too few updates to learn from, else None.

    `warms_up`: the learning rate rises from 0, so that the first update changes next to nothing.
    """
    if updates >= FEW_UPDATES:
        return None
    enough = math.ceil(epochs * FEW_UPDATES / max(1, updates))
    smaller = tr("lower --global-batch-size (now {batch}), ", batch=batch) if batch > 1 else ""
    first = tr(", the first of them at a learning rate near 0") if warms_up else ""
    return tr(
        "{updates} in all are few to learn from{first}: {smaller}raise --num-train-epochs (now {epochs:g}; {enough} "
        "give about {wanted} updates), or add data; make tune finds learning rate, batch size and epochs for your data",
        updates=counted(updates, "update"),
        first=first,
        smaller=smaller,
        epochs=epochs,
        enough=enough,
        wanted=FEW_UPDATES,
    )
