"""The endpoints: /v1/chat/completions, /v1/completions, /v1/models and /health, as OpenAI's clients call them.

A page of another site could make a browser send requests to this machine. So a body must be declared as JSON, which a
browser does not send without asking first, and without a key the name by which the server is called must be local.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from llm_qa.console import UserError
from llm_qa.data.plain_prompt import Context
from llm_qa.data.prompts import encode_prompts
from llm_qa.data.text import invalid_reason
from llm_qa.data.tokenization import encode_texts
from llm_qa.inference.fitting import with_shorter_context
from llm_qa.inference.settings import GenerationSettings
from llm_qa.serving.answer_text import AnswerText
from llm_qa.serving.engine import Engine, Job
from llm_qa.serving.schema import ApiError, Body, ChatBody, CompletionBody, Kind, read_body, read_messages

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
SECONDS_FOR_BODY = 30
NEWS = tuple[list[int] | None, bool]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for: bytes of its body, tokens of prompt and answer together, tokens of an answer."""

    body_bytes: int
    context: int
    max_tokens: int  # the most that a request may ask for
    default_tokens: int  # where it asks for no number


def build_app(
    engine: Engine,
    tokenizer,
    name: str,
    limits: Limits,
    api_key: str | None,
    context_of: Callable[[str, Context], Context] = lambda question, before: before,
) -> FastAPI:
    """The application that answers with `engine` under the model's `name`.

    `context_of` gives what stands before the question of a chat, of the messages that are sent before it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    started = int(time.time())

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 429 else {}
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        message = {404: "There is no such address on this server.", 405: "This method is not allowed here."}
        answer = ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
        return JSONResponse(answer.body(), error.status_code)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(ApiError(500, "The server failed; its log says why.").body(), 500)

    def check_access(request: Request) -> None:
        if api_key is None:
            host = request.headers.get("host", "")
            if host.rpartition(":")[0] not in LOCAL_NAMES and host not in LOCAL_NAMES:
                raise ApiError(400, "This server is called by 127.0.0.1 or localhost only, as it has no --api-key.")
            return
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {api_key}".encode()):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    async def read(request: Request, kind: type[Kind]) -> Kind:
        check_access(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The body must be declared as Content-Type: application/json.")
        data = bytearray()
        try:
            async with asyncio.timeout(SECONDS_FOR_BODY):
                async for part in request.stream():
                    data += part
                    if len(data) > limits.body_bytes:
                        raise ApiError(413, f"The body has more than {limits.body_bytes:,} bytes.")
        except TimeoutError:
            raise ApiError(408, f"The body did not come within {SECONDS_FOR_BODY} seconds.") from None
        body = read_body(bytes(data), kind)
        if body.model != name:
            message = f"There is no model {body.model[:60]!r} here: {name!r} is."
            raise ApiError(404, message, param="model", code="model_not_found")
        return body

    def fitting(prompt: list[int], asked: int | None) -> int:
        """The longest answer in tokens; ApiError where prompt or answer is too long."""
        room = limits.context - len(prompt)
        if not prompt:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        if room < 1 or (asked and asked > room):
            raise ApiError(
                400,
                f"The prompt has {len(prompt):,} tokens, the longest answer {asked or 1:,}, and the model's context is "
                f"{limits.context:,} tokens: shorten the prompt or lower max_tokens.",
                code="context_length_exceeded",
            )
        if asked and asked > limits.max_tokens:
            raise ApiError(400, f"max_tokens is at most {limits.max_tokens:,} here.", param="max_tokens")
        return asked or min(room, limits.default_tokens)

    def prompt_of(question: str, before: Context, asked: int | None) -> list[int]:
        """The prompt of a chat, in which the server's own references give way to what the client sent and the answer.

        What the client sent is never shortened: `fitting` refuses it where it is too long.
        """
        context, room = context_of(question, before or ""), limits.context - (asked or limits.default_tokens)
        prompt, own = encode_prompts(tokenizer, [(question, context), (question, before)])
        if len(prompt) <= room or context == before:
            return prompt
        if len(own) > room:
            return own
        return encode_prompts(tokenizer, [with_shorter_context(tokenizer, question, context, room)])[0]

    async def answer(request: Request, body: Body, prompt: list[int], asked: int | None, shape: Shape):
        sampled = bool(body.temperature)
        settings = GenerationSettings(
            max_new_tokens=fitting(prompt, asked),
            do_sample=sampled,
            temperature=body.temperature or 1.0,
            top_p=body.top_p or 1.0 if sampled else 1.0,
            seed=secrets.randbits(62) if body.seed is None else body.seed,
        )
        loop, news = asyncio.get_running_loop(), asyncio.Queue[NEWS]()

        def told(tokens: list[int] | None, finished: bool) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(news.put_nowait, (tokens, finished))

        job = Job(prompt, settings, told, seeded=body.seed is not None)
        if not engine.submit(job):
            raise ApiError(429, f"{engine.most_waiting:,} requests wait already: ask again later.", code="queue_full")
        text = AnswerText(tokenizer, engine.ends, body.stops)
        common = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

        async def pieces() -> AsyncIterator[str]:
            try:
                finished = False
                while not (finished or text.stopped):
                    tokens, finished = await news.get()
                    if tokens is None:
                        raise ApiError(500, "The answer failed; the server's log says why.")
                    if piece := text.add(tokens, last=finished):
                        yield piece
            finally:
                engine.cancel(job)

        def usage() -> dict[str, int]:
            new = len(text.tokens)
            return {"prompt_tokens": len(prompt), "completion_tokens": new, "total_tokens": len(prompt) + new}

        def reason() -> str:
            return "stop" if text.stopped else "length"

        async def events() -> AsyncIterator[str]:
            def event(value: dict[str, Any]) -> str:
                return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

            def chunk(piece: str, end: str | None = None, first: bool = False) -> str:
                choice = {"index": 0, **shape.piece(piece, first), "finish_reason": end, "logprobs": None}
                return event({**common, "object": shape.streamed, "choices": [choice]})

            try:
                if shape.opens:
                    yield chunk("", first=True)
                async for piece in pieces():
                    yield chunk(piece)
                yield chunk("", reason())
                if body.stream_options and body.stream_options.include_usage:
                    yield event({**common, "object": shape.streamed, "choices": [], "usage": usage()})
            except ApiError as error:
                yield event(error.body())
            finally:
                engine.cancel(job)  # also where the client has gone before the first piece
            yield "data: [DONE]\n\n"

        if body.stream:
            return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        await unless_gone(request, _drain(pieces()))
        engine.cancel(job)
        choice = {"index": 0, **shape.whole(text.text), "finish_reason": reason(), "logprobs": None}
        return JSONResponse({**common, "object": shape.object, "choices": [choice], "usage": usage()})

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "answering": len(engine.answering), "waiting": len(engine.waiting)})

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        check_access(request)
        model = {"id": name, "object": "model", "created": started, "owned_by": "llm_qa"}
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{asked:path}")
    async def model(request: Request, asked: str) -> JSONResponse:
        check_access(request)
        if asked != name:
            raise ApiError(404, f"There is no model {asked[:60]!r} here.", param="model", code="model_not_found")
        return JSONResponse({"id": name, "object": "model", "created": started, "owned_by": "llm_qa"})

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await read(request, ChatBody)
        question, before = read_messages(body.messages)
        asked = body.max_completion_tokens or body.max_tokens
        try:
            prompt = await asyncio.to_thread(prompt_of, question, before, asked)
        except UserError as error:  # a template may want roles in turn, or have no place for the system's message
            raise ApiError(400, str(error), param="messages") from None
        return await answer(request, body, prompt, asked, CHAT)

    @app.post("/v1/completions")
    async def completion(request: Request):
        body = await read(request, CompletionBody)
        if reason := invalid_reason(body.prompt):
            raise ApiError(400, f"The prompt cannot be used: {reason}.", param="prompt")
        (prompt,) = await asyncio.to_thread(encode_texts, tokenizer, [body.prompt])
        return await answer(request, body, prompt, body.max_tokens, COMPLETION)

    return app


@dataclass(frozen=True)
class Shape:
    """How an endpoint writes an answer: names, and the part of a choice that holds text."""

    prefix: str
    object: str
    streamed: str
    opens: bool  # whether a stream begins with a chunk that names the role
    whole: Callable[[str], dict[str, Any]]
    piece: Callable[[str, bool], dict[str, Any]]


def _delta(text: str, first: bool) -> dict[str, Any]:
    return {"delta": {"role": "assistant", "content": ""} if first else {"content": text} if text else {}}


CHAT = Shape(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    True,
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    _delta,
)
COMPLETION = Shape(
    "cmpl", "text_completion", "text_completion", False, lambda text: {"text": text}, lambda text, first: {"text": text}
)


async def _drain(pieces: AsyncIterator[str]) -> None:
    async for _ in pieces:
        pass


async def unless_gone(request: Request, work) -> None:
    """Await `work`, or cancel it where the client hangs up before, which raises ApiError for nobody to read."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        done = tasks[0].done()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not done:
        raise ApiError(499, "The client has gone.")
    tasks[0].result()
