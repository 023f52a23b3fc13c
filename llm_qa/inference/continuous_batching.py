"""Requests answered by a static decoder: a row that has finished takes the next one while the others go on.

Continuous batching: Yu et al. 2022, OSDI "Orca".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import torch

from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import Request, StaticDecoder

LOOK_EVERY = 8  # steps between two checks by the host for new tokens
REFILLED = 1 / 8  # share of rows that must have finished before new prompts are read


class Progress(NamedTuple):
    """What is new of an answer: its handle, token ids (the end token included), and whether it is complete."""

    handle: int
    tokens: list[int]
    finished: bool


class AnswerQueue:
    """Requests in the order of `add`, answered `decoder.rows` at once; only one queue uses a decoder at a time.

    New prompts are read when a `refilled` share of the rows is free: 0 begins every request as soon as it can, as a
    server wants, and reading several at once takes less time in all. For one thread.
    """

    def __init__(self, decoder: StaticDecoder, *, refilled: float = REFILLED):
        self.decoder, self.refilled = decoder, refilled
        self.waiting: deque[tuple[int, Request]] = deque()
        self.answering: dict[int, int] = {}  # row -> handle
        self.told: dict[int, int] = {}  # row -> tokens that were reported
        self.added = 0
        decoder.stop(range(decoder.rows))

    def __bool__(self) -> bool:
        """Whether anything is left to answer."""
        return bool(self.waiting or self.answering)

    def add(self, request: Request) -> int:
        """Append a request, and return its handle. ValueError where it does not fit into the decoder's context."""
        self.decoder.check_fits(request)
        self.added += 1
        self.waiting.append((self.added, request))
        return self.added

    def cancel(self, handle: int) -> None:
        """Leave a request unanswered from here on; nothing more is reported of it. Unknown handles are ignored."""
        self.waiting = deque(item for item in self.waiting if item[0] != handle)
        for row in [row for row, own in self.answering.items() if own == handle]:
            self.decoder.stop([row])
            del self.answering[row], self.told[row]

    def advance(self, steps: int = LOOK_EVERY) -> list[Progress]:
        """Read waiting prompts where rows are free, generate up to `steps` tokens more of every answer, and report.

        Waits for the device once. Every answer in progress is reported, also with no new tokens.
        """
        decoder = self.decoder
        free = [row for row in range(decoder.rows) if row not in self.answering]
        if self.waiting and len(free) >= max(1, self.refilled * decoder.rows):
            new = {row: self.waiting.popleft() for row in free[: len(self.waiting)]}
            decoder.prefill({row: request for row, (_, request) in new.items()})
            self.answering |= {row: handle for row, (handle, _) in new.items()}
            self.told |= dict.fromkeys(new, 0)
        if not self.answering:
            return []
        self._steps(steps)
        return self._report()

    def _steps(self, most: int) -> None:
        """Run `most` steps, or fewer where every row reaches its limit before."""
        decoder = self.decoder
        state = torch.stack([decoder.positions, decoder.limits - decoder.counts, ~decoder.finished]).tolist()
        going = [(state[0][row], state[1][row]) for row in self.answering if state[2][row]]
        furthest = max((position for position, _ in going), default=0)
        for number in range(min(most, max((left for _, left in going), default=0))):
            decoder.step(decoder.reach(furthest + number))

    def _report(self) -> list[Progress]:
        rows, decoder = list(self.answering), self.decoder
        counts, finished = torch.stack([decoder.counts, decoder.finished])[:, rows].tolist()
        first = min(self.told[row] for row in rows)
        last = max(counts)
        tokens = decoder.generated[rows, first:last].tolist()
        news = []
        for row, count, done, own in zip(rows, counts, finished, tokens, strict=True):
            news.append(Progress(self.answering[row], own[self.told[row] - first : count - first], bool(done)))
            self.told[row] = count
            if done:
                del self.answering[row], self.told[row]
        decoder.stop(row for row, done in zip(rows, finished, strict=True) if done)
        return news


def generate(
    decoder: StaticDecoder,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    *,
    refilled: float = REFILLED,
    answered: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """Answers to prompts of token ids, in their order, each up to and with its eos.

    One prompt several times gives as many draws. With `refilled` 1 a batch ends before the next begins. `answered` is
    called with the number of new answers.
    """
    queue = AnswerQueue(decoder, refilled=refilled)
    answers: list[list[int]] = [[] for _ in prompts]
    handles = {}
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):  # prompts read together have little padding
        handles[queue.add(Request(list(prompts[i]), settings, i))] = i
    while queue:
        news = queue.advance()
        for handle, tokens, _ in news:
            answers[handles[handle]] += tokens
        if done := sum(progress.finished for progress in news):
            answered(done)
    return answers


def stream(decoder: StaticDecoder, request: Request) -> Generator[list[int], None, None]:
    """The tokens of one answer as they come, its eos included; leaving the loop early ends the answer."""
    queue = AnswerQueue(decoder, refilled=0)
    handle = queue.add(request)
    try:
        while queue:
            for progress in queue.advance(steps=1):
                yield progress.tokens
    finally:
        queue.cancel(handle)
