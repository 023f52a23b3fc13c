"""Seconds and real tokens of some updates, in whatever trainer they are made."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import torch
from transformers import TrainerCallback

from llm_qa.training.callbacks.stopping import command_started


class Stopwatch(TrainerCallback):
    """Measures the updates after the warm-up, the GPU waited for at both ends; `start_up_seconds` are until the first.

    A loop without Trainer calls `update` itself.
    """

    def __init__(self, warmup: int, steps: int):
        self.warmup, self.end = warmup, warmup + steps
        self.started = self.seconds = self.start_up_seconds = 0.0
        self.tokens_before = self.tokens = 0
        self.losses: list[float] = []
        self.ends: list[torch.cuda.Event] = []

    def on_step_begin(self, args, state, control, **kwargs):
        """Ask for a log of an update whose tokens must be known: they are counted only then."""
        control.should_log |= self.waits_for(state.global_step + 1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep every loss."""
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_step_end(self, args, state, control, **kwargs):
        """An update is over; RealTokens, which comes before, has counted it."""
        self.update(state.global_step, state.num_input_tokens_seen)

    def waits_for(self, step: int) -> bool:
        """True at the two steps whose tokens must be known."""
        return step in (self.warmup, self.end)

    def update(self, step: int, tokens: int) -> None:
        """Start after the warm-up, stop after the last update. `tokens` are the real ones so far."""
        if torch.cuda.is_available() and self.warmup <= step <= self.end:
            self.ends.append(torch.cuda.Event(enable_timing=True))
            self.ends[-1].record()
        if step == 1 or self.waits_for(step):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step == 1:
                self.start_up_seconds = time.time() - command_started()
        now = time.perf_counter()
        if step == self.warmup:
            self.started, self.tokens_before = now, tokens
        elif step == self.end:
            self.seconds, self.tokens = now - self.started, tokens - self.tokens_before

    def result(self) -> dict:
        """What was measured. A loss that is not finite is no measurement (it is faster): RuntimeError."""
        if not self.losses or not all(map(math.isfinite, self.losses)):
            raise RuntimeError(f"The losses {self.losses} are not all finite numbers: nothing was measured.")
        return {
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "tokens_measured": self.tokens,
            "updates_measured": self.end - self.warmup,
            "milliseconds_of_updates": [round(a.elapsed_time(b), 1) for a, b in pairwise(self.ends)],
            "start_up_seconds": round(self.start_up_seconds, 1),
            "last_loss": self.losses[-1],
        }
