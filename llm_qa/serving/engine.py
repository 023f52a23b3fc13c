"""One thread answers all requests together; the web server's event loop only waits for it.

With a static decoder by continuous batching (`continuous_batching.py`): a row that is free takes the next request.
Else by transformers' generate in batches of what waits; a row of a batch ends by its own limit or when its client has
gone, and the next batch begins when all rows have ended.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from llm_qa.inference.continuous_batching import AnswerQueue
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import Request, StaticDecoder
from llm_qa.models.loading import end_tokens

# told(tokens, finished): called in the engine's thread; tokens is None where the answer failed
Told = Callable[[list[int] | None, bool], None]


@dataclass(eq=False)
class Job:
    """A prompt of token ids to be answered. `seeded`: its draws depend on its own seed alone."""

    prompt: list[int]
    settings: GenerationSettings
    told: Told
    seeded: bool = False
    cancelled: bool = False

    def alike(self, other: Job) -> bool:
        """Whether one batch of transformers' generate can answer both: it samples all rows with one setting."""
        if self.settings.do_sample and (self.seeded or other.seeded):
            return False
        same = replace(self.settings, max_new_tokens=1, seed=0), replace(other.settings, max_new_tokens=1, seed=0)
        return same[0] == same[1]


class Engine:
    """Answers jobs in their order, `rows` at once; `most_waiting` may wait beside those that are answered."""

    def __init__(self, model, tokenizer, decoder: StaticDecoder | None, *, rows: int, most_waiting: int):
        self.model, self.tokenizer, self.decoder = model, tokenizer, decoder
        self.ends = end_tokens(model, tokenizer)
        self.rows, self.most_waiting = decoder.rows if decoder else rows, most_waiting
        self.waiting: deque[Job] = deque()
        self.answering: list[Job] = []
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> bool:
        """Append a job; False where too many wait."""
        with self.changed:
            if len(self.waiting) >= self.most_waiting:
                return False
            self.waiting.append(job)
            self.changed.notify()
        return True

    def cancel(self, job: Job) -> None:
        """Answer a job no further; its row is free from the next step on. A finished job is ignored."""
        with self.changed:
            job.cancelled = True
            if job in self.waiting:
                self.waiting.remove(job)

    def close(self) -> None:
        """Answer what was taken, and end the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        answer = self._answer_static if self.decoder else self._answer_batch
        while self._work_came():
            try:
                answer()
            except Exception:  # one bad batch must not end the server: its clients get an error, the others go on
                traceback.print_exc()
                self._end_all()

    def _work_came(self) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            return bool(self.waiting)

    def _end_all(self) -> None:
        for job in self.answering:
            job.told(None, True)
        self.answering = []

    def _take(self, most: int, fits: Callable[[Job], bool] = lambda job: True) -> list[Job]:
        """Up to `most` waiting jobs, in their order, that fit."""
        with self.changed:
            taken = [job for job in self.waiting if fits(job)][:most]
            for job in taken:
                self.waiting.remove(job)
            self.answering += taken
        return taken

    def _answer_static(self) -> None:
        """Answer until nothing waits."""
        assert self.decoder
        queue = AnswerQueue(self.decoder, refilled=0)
        handles: dict[int, Job] = {}
        while True:
            for job in self._take(self.rows - len(handles)):
                handles[queue.add(Request(job.prompt, job.settings))] = job
            for handle in [handle for handle, job in handles.items() if job.cancelled]:
                queue.cancel(handle)
                self.answering.remove(handles.pop(handle))
            if not handles:
                return
            for handle, tokens, finished in queue.advance():
                handles[handle].told(tokens, finished)
                if finished:
                    self.answering.remove(handles.pop(handle))

    @torch.inference_mode()
    def _answer_batch(self) -> None:
        """Answer the first job and those that wait and can share its batch."""
        (first,) = self._take(1) or (None,)
        if first is None:
            return
        jobs = [first, *self._take(self.rows - 1, first.alike)]
        pad, ends, width = self.tokenizer.pad_token_id, self.ends, max(len(job.prompt) for job in jobs)
        counts, going = [0] * len(jobs), set(range(len(jobs)))
        device = self.model.get_input_embeddings().weight.device

        class Rows:
            """What generate calls a streamer; it gives the prompts first."""

            prompts_are_next = True

            def put(self, value: torch.Tensor) -> None:
                if self.prompts_are_next:
                    self.prompts_are_next = False
                    return
                for row, token in enumerate(value.view(-1).tolist()):
                    if row in going:
                        job = jobs[row]
                        counts[row] += 1
                        finished = token in ends or counts[row] >= job.settings.max_new_tokens
                        if finished or job.cancelled:
                            going.discard(row)
                        job.told([token], finished)

            def end(self) -> None:
                pass

        def ended(input_ids, scores) -> torch.Tensor:
            return torch.tensor([row not in going for row in range(len(jobs))], device=device)

        padding = [width - len(job.prompt) for job in jobs]
        tokens = [[pad] * empty + job.prompt for empty, job in zip(padding, jobs, strict=True)]
        mask = [[0] * empty + [1] * (width - empty) for empty in padding]
        longest = max(job.settings.max_new_tokens for job in jobs)
        torch.manual_seed(first.settings.seed)
        self.model.generate(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=torch.tensor(mask, device=device),
            pad_token_id=pad,
            eos_token_id=ends,
            use_cache=True,
            streamer=Rows(),
            stopping_criteria=[ended],
            **replace(first.settings, max_new_tokens=longest).arguments(),
        )
        self.answering = []
