"""An answer as it is generated: token ids from either decoder, and the text that they make so far."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from queue import Queue

import torch

from llm_qa.inference.continuous_batching import stream
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import Request, StaticDecoder
from llm_qa.models.loading import end_tokens

HALF_CHARACTER = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


def stream_tokens(
    model, tokenizer, prompt: list[int], settings: GenerationSettings, decoder: StaticDecoder | None = None
) -> Generator[list[int], None, None]:
    """New token ids of the answer to a prompt of token ids as they come, the end token included.

    By `decoder`, or without one by transformers' generate in a thread of its own. Leaving the loop early ends the
    answer.
    """
    if decoder:
        return stream(decoder, Request(prompt, settings))
    return _plain_tokens(model, tokenizer, prompt, settings)


def text_pieces(tokenizer, tokens: Iterable[list[int]]) -> Iterator[str]:
    """The text of tokens as it grows: pieces that make the whole text, a syllable once all of its bytes are there."""
    ids: list[int] = []
    shown = ""
    for new in tokens:
        ids += new
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = text.rstrip(HALF_CHARACTER)
        if len(whole) > len(shown):
            yield whole[len(shown) :]
            shown = whole
    if ids and len(text) > len(shown):
        yield text[len(shown) :]


class _Tokens:
    """What transformers' generate calls a streamer: puts token ids into a queue, None at the end."""

    def __init__(self) -> None:
        self.queue: Queue[list[int] | BaseException | None] = Queue()
        self.prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_is_next:
            self.queue.put(value.view(-1).tolist())
        self.prompt_is_next = False

    def end(self) -> None:
        self.queue.put(None)


def _plain_tokens(
    model, tokenizer, prompt: list[int], settings: GenerationSettings
) -> Generator[list[int], None, None]:
    from transformers import StoppingCriteriaList

    tokens, left = _Tokens(), threading.Event()
    input_ids = torch.tensor([prompt], device=model.get_input_embeddings().weight.device)

    def run() -> None:
        try:
            with torch.inference_mode():
                torch.manual_seed(settings.seed)
                model.generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=end_tokens(model, tokenizer),
                    use_cache=True,
                    streamer=tokens,
                    stopping_criteria=StoppingCriteriaList(
                        [lambda ids, scores: torch.full_like(ids[:, 0], left.is_set()).bool()]
                    ),
                    **settings.arguments(),
                )
        except BaseException as error:  # raised where the tokens are read
            tokens.queue.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (item := tokens.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()
