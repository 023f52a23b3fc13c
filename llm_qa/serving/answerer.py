"""Answers of a tuned model and of its base, streamed one at a time; leaving the loop early ends an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from queue import SimpleQueue
from typing import Any, NamedTuple

from llm_qa.data.plain_prompt import Context
from llm_qa.data.prompts import encode_prompts
from llm_qa.files import BASE, TUNED
from llm_qa.inference.fitting import fit_questions
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import StaticDecoder
from llm_qa.inference.streaming import stream_tokens, text_pieces
from llm_qa.models.loading import end_tokens


class Answer(NamedTuple):
    """The text so far; `ended` once the model has ended it by itself, so not where it was cut or is still coming."""

    text: str
    ended: bool = False


class Answerer:
    """A model and its base. `base` is a model of its own, or None: then the base is the model without its adapter.

    `has_base`: there is one, and it is wanted (`with_base`). `context_of` gives what stands
    before a question (a run with retrieval: the nearest training records).

    The decoder answers for the tuned model; the base, whose weights it does not have, is asked by transformers'
    generate.
    """

    def __init__(
        self,
        model,
        tokenizer,
        settings: GenerationSettings,
        decoder: StaticDecoder | None = None,
        base: Any = None,
        *,
        with_base: bool = True,
        context_of: Callable[[str, Context], Context] = lambda question, before: before,
    ):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.decoder, self.base, self.context_of = decoder, base, context_of
        self.has_base = with_base and (base is not None or hasattr(model, "disable_adapter"))
        self.answering = threading.Lock()  # switching the adapter off is seen by every thread

    def stream(self, question: str, whose: str = TUNED) -> Iterator[Answer]:
        """The answer of the TUNED model or the BASE as it grows, white space at its ends left out.

        UserError where the question is too long for the model's context.
        """
        assert self.has_base or whose == TUNED
        fitting = fit_questions(
            self.tokenizer, self.model.config, [(question, self.context_of(question, ""))], self.settings
        )
        (prompt,) = encode_prompts(self.tokenizer, fitting)
        # In a thread of its own: a page that is closed never comes back for the rest, and must not keep the lock.
        pieces: SimpleQueue[str | bool | Exception] = SimpleQueue()
        left = threading.Event()
        threading.Thread(target=self._generate, args=(prompt, whose, pieces, left), daemon=True).start()
        text = ""
        try:
            while isinstance(piece := pieces.get(), str):
                text += piece
                yield Answer(text.strip())
            if isinstance(piece, Exception):
                raise piece
            yield Answer(text.strip(), ended=piece)
        finally:
            left.set()

    def _generate(self, prompt: list[int], whose: str, pieces: SimpleQueue, left: threading.Event) -> None:
        """Put pieces of the text, then whether the model ended it; an error in place of both."""
        last: list[int] = []
        try:
            with self.answering, self._without_adapter(whose):
                if left.is_set():
                    return
                model = self.base if whose == BASE and self.base is not None else self.model
                decoder = None if whose == BASE else self.decoder
                with closing(stream_tokens(model, self.tokenizer, prompt, self.settings, decoder)) as tokens:

                    def watched() -> Iterator[list[int]]:
                        for last[:] in tokens:
                            if left.is_set():
                                return
                            yield list(last)

                    for piece in text_pieces(self.tokenizer, watched()):
                        pieces.put(piece)
                pieces.put(not set(end_tokens(model, self.tokenizer)).isdisjoint(last))
        except Exception as error:  # raised where the pieces are read
            pieces.put(error)

    def _without_adapter(self, whose: str) -> AbstractContextManager:
        return self.model.disable_adapter() if whose == BASE and self.base is None else nullcontext()
