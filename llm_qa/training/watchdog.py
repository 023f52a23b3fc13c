"""When a rank is dead or stopped, the others name it and end, instead of waiting half an hour in a collective.

A thread of every rank writes a heartbeat into the process group's store and checks those of the others. Heartbeats go
on while a step is slow; they stop when the process or its machine stops.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from llm_qa.console import EXIT_FAILED
from llm_qa.distributed import is_distributed, shared_store
from llm_qa.language import tr

SILENCE_SECONDS = 120.0
BEATS_A_SILENCE = 12
DONE = "done"


class Watchdog:
    """The heartbeat thread of one rank; does nothing in a single process."""

    def __init__(self, silence_seconds: float = SILENCE_SECONDS):
        self.interval = silence_seconds / BEATS_A_SILENCE
        self.silence_seconds = silence_seconds
        self.finished = threading.Event()

    def start(self) -> None:
        """Start the thread; to be called after the process group is initialised."""
        if not is_distributed():
            return
        import torch.distributed

        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        store = shared_store()
        self.store = store.clone() if hasattr(store, "clone") else store  # a connection that no collective blocks
        self.store.set(self._key(self.rank), f"0 {os.getpid()} on {socket.gethostname()}")
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """End the thread and tell the others that this rank ends normally."""
        if is_distributed() and not self.finished.is_set():
            self.finished.set()
            self.store.set(self._key(self.rank), DONE)

    def _key(self, rank: int) -> str:
        return f"llm_qa/beat/{rank}"

    def _watch(self) -> None:
        heard = [""] * self.world
        silent = [0] * self.world  # counted in own heartbeats, so that a rank that was itself suspended misses none
        beats = 0
        while not self.finished.wait(self.interval):
            beats += 1
            try:
                self.store.set(self._key(self.rank), f"{beats} {os.getpid()} on {socket.gethostname()}")
                for rank in range(self.world):
                    key = self._key(rank)
                    now = self.store.get(key).decode() if self.store.check([key]) else ""
                    silent[rank] = 0 if now != heard[rank] or now == DONE else silent[rank] + 1
                    heard[rank] = now
            except Exception as error:  # the store raises errors of its own; rank 0 hosts it
                if not self.finished.is_set():
                    told = tr("rank 0's host does not answer any more ({kind})", kind=type(error).__name__)
                    self._end(told, speak=True)
                return
            missed = [rank for rank in range(self.world) if silent[rank] >= BEATS_A_SILENCE]
            if missed and not self.finished.is_set():
                who = ", ".join(
                    tr("rank {rank} (process {process})", rank=r, process=heard[r].partition(" ")[2] or tr("unknown"))
                    for r in missed
                )
                first = min(set(range(self.world)) - set(missed), default=self.rank)
                told = tr("{who} has given no sign of life for {seconds:.0f} s", who=who, seconds=self.silence_seconds)
                self._end(told, speak=self.rank == first)

    def _end(self, told: str, *, speak: bool) -> None:
        if speak:
            print(
                tr(
                    "error: {told}: all ranks end now. Checkpoints are whole; the same command goes on "
                    "from the newest.",
                    told=told,
                ),
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.5)  # so that the rank that prints can finish before the launcher kills it
        os._exit(EXIT_FAILED)
