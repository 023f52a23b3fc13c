"""Bodies of requests in OpenAI's form, checked, and errors in OpenAI's form.

What would change an answer and is not supported is refused; what does not (`user`, `metadata`) is ignored.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_qa.console import UserError
from llm_qa.data.plain_prompt import Messages
from llm_qa.data.text import normalize, normalize_lines, visible
from llm_qa.inference.question_files import read_question

LONGEST_MESSAGE = 300  # characters of an error's message: a bad value is not sent back whole


class ApiError(Exception):
    """An error that the client gets, with an HTTP status, as {"error": {"message", "type", "param", "code"}}."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = visible(str(self))[:LONGEST_MESSAGE]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class _Form(BaseModel):
    """Values of the right JSON type only: "3" is no number."""

    model_config = ConfigDict(strict=True, extra="allow")


class StreamOptions(_Form):
    include_usage: bool = False


class Body(_Form):
    """What both endpoints take. Without a temperature an answer is greedy, as ask.py's."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = Field(None, max_length=100)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None

    @property
    def stops(self) -> list[str]:
        """Texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class TextPart(_Form):
    type: Literal["text"]
    text: str


class Message(_Form):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content; several parts are joined by line breaks."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatBody(Body):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionBody(Body):
    prompt: str


# Fields that ask for something else than is given, unless they have the value that means nothing.
UNSUPPORTED = (
    *("tools", "functions", "tool_choice", "response_format", "logprobs", "top_logprobs", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "best_of", "echo", "suffix", "audio", "modalities"),
)
NEUTRAL: tuple[Any, ...] = (None, False, 0, [], {}, "none", {"type": "text"}, ["text"])


Kind = TypeVar("Kind", bound=Body)


def read_body(data: bytes, kind: type[Kind]) -> Kind:
    """The body of a request; ApiError with the field and the reason where it is none."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ApiError(400, f"The body is no JSON in UTF-8: {str(error)[:100] or type(error).__name__}.") from None
    if not isinstance(values, dict):
        raise ApiError(400, "The body is JSON, but not an object.")
    for name in UNSUPPORTED:
        if name in values and values[name] not in NEUTRAL and not (name == "best_of" and values[name] == 1):
            raise ApiError(400, f"{name} is not supported by this server: leave it out.", param=name)
    try:
        body = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ApiError(400, f"{name}: {first['msg']}.", param=name) from None
    if len(body.stops) > 4 or not all(0 < len(stop) <= 100 for stop in body.stops):
        raise ApiError(400, "stop: at most 4 texts of 1 to 100 characters.", param="stop")
    return body


def read_messages(messages: list[Message]) -> tuple[str, Messages]:
    """(question, the messages before it) as `prompts.py` takes them; ApiError for what is no conversation."""
    *earlier, last = messages
    if last.role != "user":
        raise ApiError(400, "messages: the last one must be of the role user.", param="messages")
    try:
        question = read_question(last.text, "The question", tidy=normalize)
        texts = [read_question(m.text, "A message", may_be_empty=True, tidy=normalize_lines) for m in earlier]
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
    roles = ["system" if message.role == "developer" else message.role for message in earlier]
    return question, tuple((role, text) for role, text in zip(roles, texts, strict=True) if text)
