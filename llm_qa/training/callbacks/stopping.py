"""Saves and stops on a signal or before the wall-clock budget is spent, at the same step on all ranks."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import psutil
from transformers import TrainerCallback

from llm_qa.console import say
from llm_qa.distributed import sum_over_ranks
from llm_qa.language import tr

# Slurm, a terminal and torchrun may each forward one signal: signals within this time count as one.
SAME_EVENT_SECONDS = 1.0
PR_SET_PDEATHSIG = 1  # prctl(2): which signal to receive when the parent dies


def under_a_launcher() -> bool:
    """True in a process that accelerate launch or torchrun started."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def command_started() -> float:
    """Seconds since 1970 at which the user's command began: this process, or the launcher that started it."""
    own = psutil.Process()
    parent = own.parent() if under_a_launcher() else None
    return min(process.create_time() for process in (own, parent) if process is not None)


class StopInTime(TrainerCallback):
    """Saves and stops when the wall-clock budget is nearly spent or after SIGTERM, SIGINT or SIGHUP.

    The budget counts from the start of the command. Training stops when less than two of the slowest steps, the slowest
    validation and `seconds_to_save` are left of it.
    """

    def __init__(self, max_hours: float | None, seconds_to_save: Callable[[], float] = lambda: 0.0):
        self.deadline = command_started() + max_hours * 3600 if max_hours else None
        self.max_hours = max_hours
        self.signal: str | None = None
        self.reason: str | None = None
        self.step_seconds = self.validation_seconds = 0.0
        self.seconds_to_save = seconds_to_save
        self.mark = 0.0

    def catch_signals(self) -> None:
        """Let a signal request a stop after the step; another one, at least a second later, ends at once.

        A thread receives signals even while the main thread waits in a collective. Where the launcher dies, its workers
        get SIGHUP, so that they save and stop.
        """
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        caught = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            caught.append(signal.SIGHUP)
        for number in caught:
            signal.signal(number, lambda *_: None)
        if under_a_launcher() and sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
        self.wakeup = theirs  # keeps it from being closed
        threading.Thread(target=self._listen, args=(ours, set(caught)), daemon=True).start()

    def _listen(self, ours: socket.socket, caught: set[int]) -> None:
        first_at = 0.0
        while number := ours.recv(1):
            if number[0] not in caught:
                continue
            name = signal.Signals(number[0]).name
            if self.signal is None:
                self.signal, first_at = name, time.monotonic()
                say(tr("{name}: saving after this step, then stopping (send it again to stop at once)", name=name))
            elif name != "SIGHUP" and time.monotonic() - first_at > SAME_EVENT_SECONDS:
                say(tr("{name} again: stopped at once, without saving", name=name))
                os._exit(128 + number[0])

    def on_step_begin(self, args, state, control, **kwargs):
        """Note when the step began."""
        self.mark = time.time()

    def _since_mark(self) -> float:
        now = time.time()
        seconds, self.mark = now - self.mark, now
        return seconds

    def _kept_back(self) -> float:
        return 2 * self.step_seconds + self.validation_seconds + self.seconds_to_save()

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop now where any rank wants to stop."""
        self.step_seconds = max(self.step_seconds, self._since_mark())
        out_of_time = self.deadline is not None and self.mark + self._kept_back() > self.deadline
        votes = sum_over_ranks([float(self.signal is not None), float(out_of_time)], args.device)
        if state.global_step >= state.max_steps or not any(votes):
            return
        self.reason = (self.signal or tr("a signal to another rank")) if votes[0] else f"max_hours {self.max_hours}"
        control.should_save = control.should_training_stop = True

    def on_evaluate(self, args, state, control, **kwargs):
        """Note how long a validation takes, as it must fit into the budget."""
        self.validation_seconds = max(self.validation_seconds, self._since_mark())

    def on_epoch_end(self, args, state, control, **kwargs):
        """Skip the validation where training stops within an epoch: Trainer would validate and exceed the budget."""
        if self.reason is not None:
            control.should_evaluate = False
