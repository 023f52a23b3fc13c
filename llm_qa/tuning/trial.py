"""One trial: a training in processes of its own, its output in a file, what came of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import Failed, StoppedEarly, progress
from llm_qa.language import later, tr
from llm_qa.migrations import read_json
from llm_qa.models.loading import EMBEDDED_BASE
from llm_qa.tuning.settings import Setting

NOT_FINITE = later("is not a finite number")  # what train.py ends with where a learning rate is far too high
WEIGHTS = (files.CHECKPOINTS, files.ADAPTER, files.MODEL, EMBEDDED_BASE)  # folders of a run, all that takes room in it


def output_file(run: Path) -> Path:
    """What a trial's training said. It lies beside the run folder, which train.py wants to find empty at first."""
    return run.with_name(f"{run.name}.txt")


@dataclass(frozen=True)
class Result:
    """A finished trial. `validation_loss` is the lowest, in nats per label token; None where training diverged."""

    setting: Setting
    validation_loss: float | None
    updates: int  # until it ended, by itself or by early stopping
    best_update: int  # whose weights were kept
    epochs_trained: float
    training_seconds: float
    seconds: float  # of the whole command, with its start

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file of a search."""
        return {**asdict(self.setting), **{k: v for k, v in asdict(self).items() if k != "setting"}}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Result:
        """The result that to_json wrote."""
        setting = Setting(**{key: row[key] for key in ("learning_rate", "batch", "epochs")})
        return cls(setting, **{k: row[k] for k in cls.__dataclass_fields__ if k != "setting"})


class Signals:
    """Passes SIGTERM, SIGHUP and Ctrl-C on to the training that runs, which then saves and stops."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.group: int | None = None  # the process group of the training

    def _handle(self, number: int, frame) -> None:
        self.received = signal.Signals(number).name
        self.stop_training()

    def stop_training(self) -> None:
        """Ask the training that runs, if any, to save and stop."""
        if self.group is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGTERM)

    @contextmanager
    def caught(self):
        """Within this block signals are passed on, and do not end this process."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(command: Sequence[str], run: Path, signals: Signals, what: str) -> tuple[int, float]:
    """Run a training to its end: (exit code, seconds). Its output goes to output_file(run); a bar shows its updates.

    Its processes are a group of their own, so that a signal reaches them once, by `signals`. It has ended when the last
    of them has closed its output, as a launcher may die before the training that it started has saved.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(output_file(run), "w", encoding="utf-8") as output, progress(total=1, what=what, unit="updates") as bar:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        signals.group = process.pid
        if signals.received:  # just before there was a group to pass it on to
            signals.stop_training()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                output.write(line)
                output.flush()
                if step := re.search(r"^ *(\d+)/(\d+) ", line):
                    bar.total = int(step[2])
                    bar.update(int(step[1]) - bar.n)
            return process.wait(), time.monotonic() - began
        finally:
            signals.group = None


def result_of(setting: Setting, run: Path, code: int, seconds: float, signals: Signals) -> Result:
    """What a training that has ended came to.

    Raises StoppedEarly where it was stopped with everything saved, Failed with its last words where it failed.
    """
    path = run / files.TRAINING
    training = read_json(path) if path.is_file() else {}
    if training.get("finished") and code == 0:
        kept = training["kept"]
        if kept is None:
            raise Failed(f"{run} has no validation loss to judge by: prepare the data with --validation.")
        steps = (training["steps"], kept["step"], training["epochs"], training["wall_seconds"])
        return Result(setting, kept["validation_loss"], *steps, round(seconds, 1))
    if signals.received:
        raise StoppedEarly(f"{signals.received}: stopped; the finished trials are kept, and the same command goes on")
    said = files.read_text(output_file(run)).strip().splitlines()
    if code and said and any(tr(NOT_FINITE) in line for line in said[-40:]):
        return Result(setting, None, 0, 0, 0.0, 0.0, round(seconds, 1))
    if training.get("finished") is False and any(tr("stopped early") in line for line in said[-5:]):
        raise StoppedEarly(f"{said[-1]}\nthe finished trials are kept, and the same command goes on with this one")
    errors = (
        [line for line in said if line.startswith(tr("error: {error}", error=""))] or said[-1:] or ["it said nothing"]
    )
    raise Failed(f"The trial {run} ended with code {code}: {errors[-1]} (all that it said: {output_file(run)})")


def remove_weights(run: Path, *, checkpoints_only: bool = False) -> None:
    """Delete the weights of a finished trial, or only what training goes on from."""
    for name in WEIGHTS[:1] if checkpoints_only else WEIGHTS:
        if (run / name).is_dir():
            shutil.rmtree(run / name)
