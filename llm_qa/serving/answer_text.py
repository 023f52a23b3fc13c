"""The text of an answer as its tokens come: whole characters only, ended by a stop text, without outer white space."""

from __future__ import annotations

from collections.abc import Sequence

from llm_qa.inference.streaming import HALF_CHARACTER


class AnswerText:
    """Gives pieces that together are the answer; what may still change (half a syllable, a beginning stop) is held."""

    def __init__(self, tokenizer, ends: Sequence[int], stops: Sequence[str] = ()):
        self.tokenizer, self.ends, self.stops = tokenizer, set(ends), list(stops)
        self.tokens: list[int] = []
        self.text = ""  # what was given
        self.stopped = False  # by the end token or a stop text

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """The text that is certain with these tokens too; `last`: no more will come."""
        if self.stopped:
            return ""
        self.tokens += tokens
        ended = not self.ends.isdisjoint(tokens)
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.stopped = ended or bool(places)
        if places:
            text = text[: min(places)]
        elif not (last or ended):
            text = text.rstrip(HALF_CHARACTER)
            text = text[: len(text) - self._begun(text)]
        text = text.strip()
        piece = text[len(self.text) :]
        self.text += piece
        return piece

    def _begun(self, text: str) -> int:
        """Characters at the end of `text` with which a stop text may begin."""
        lengths = (length for stop in self.stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
        return max(lengths, default=0)
