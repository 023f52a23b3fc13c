"""The chat page: what its buttons do, as plain functions, and the page around them, built with Gradio.

Nothing is loaded from other machines: Gradio's own files come from the installed package, and a
Content-Security-Policy lets a browser fetch from this server alone.
"""

# Without `from __future__ import annotations`: Gradio reads the annotation gr.Request as an object.
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from llm_qa.console import UserError, say
from llm_qa.data.marks import BAD, GOOD, Mark, append_mark
from llm_qa.data.text import normalize_lines
from llm_qa.evaluation.predict.contamination import TrainingQuestions
from llm_qa.files import BASE, TUNED
from llm_qa.inference.question_files import read_question
from llm_qa.serving.answerer import Answerer
from llm_qa.serving.chat_texts import TEXTS

USER = "llm_qa"  # the name that a browser asks for beside the password
POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
POLICY += "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
STYLE = """
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: 0 auto !important}
.prose, textarea {word-break: keep-all; overflow-wrap: anywhere}
.nearest {margin: 0; padding: 0; list-style: none}
.nearest li {border-top: 1px solid var(--border-color-primary); padding: .6em 0}
.nearest li:first-child {border-top: 0}
.nearest .asked {font-weight: 600}
.nearest .answered {white-space: pre-wrap}
"""


@dataclass(frozen=True)
class Shown:
    """What the page shows of a question: both answers so far, and the nearest training questions with their answers.

    `nearest` is None where the training data is not known. `whole`: the tuned answer was ended by the model itself.
    """

    question: str = ""
    tuned: str = ""
    base: str = ""
    nearest: tuple[tuple[str, str], ...] | None = ()
    whole: bool = False
    status: str = ""


class Chat:
    """What the page's buttons do. `training` is None where the training data is not known."""

    def __init__(
        self,
        answerer: Answerer,
        training: TrainingQuestions | None,
        marks: Path,
        *,
        model: str,
        language: str,
        nearest: int = 3,
    ):
        self.answerer, self.training, self.marks, self.model = answerer, training, marks, model
        self.texts, self.nearest = TEXTS[language], nearest

    def ask(self, question: str, stopped: threading.Event | None = None) -> Iterator[Shown]:
        """The tuned model's answer as it grows, then the base's; `status` says why there is none.

        Setting `stopped` ends it at the next piece.
        """
        stopped = stopped or threading.Event()
        shown = Shown(nearest=None if self.training is None else ())
        try:
            question = read_question(question)
            nearest = tuple(self.training.nearest(question, self.nearest)) if self.training else None
            shown = replace(shown, question=question, nearest=nearest, status=self.texts["answering"])
            yield shown
            for whose in (TUNED, BASE) if self.answerer.has_base else (TUNED,):
                for answer in self.answerer.stream(question, whose):
                    if stopped.is_set():
                        yield replace(shown, status=self.texts["stopped"])
                        return
                    if whose == TUNED:
                        shown = replace(shown, tuned=answer.text, whole=answer.ended)
                    else:
                        shown = replace(shown, base=answer.text)
                    yield shown
        except UserError as error:
            yield replace(shown, status=self.texts["failed"].format(error=error))
            return
        ending = self.texts["answered" if shown.whole else "cut"]
        tokens = f"{self.answerer.settings.max_new_tokens:,}"
        yield replace(shown, status=ending.format(marks=self.marks, tokens=tokens))

    def mark(self, shown: Shown, mark: str, better: str = "") -> str:
        """Append a mark of the tuned answer, or of the answer that is `better`; the sentence that the page says."""
        if not shown.question:
            return self.texts["nothing"]
        if mark == GOOD and not (shown.whole and shown.tuned):
            return self.texts["unfinished"]
        try:
            append_mark(self.marks, Mark(shown.question, shown.tuned, mark, better, self.model))
        except UserError as error:
            return str(error)
        return self.texts["marked_better" if better else f"marked_{mark}"]

    def mark_better(self, shown: Shown, better: str) -> str:
        """Append the better answer that was written, as a mark of a bad one; the sentence that the page says."""
        try:
            better = read_question(better, self.texts["better"], may_be_empty=True, tidy=normalize_lines)
        except UserError as error:
            return str(error)
        return self.mark(shown, BAD, better) if better else self.texts["no_better"]

    def nearest_html(self, shown: Shown) -> str:
        """The nearest training questions as a list with its heading, escaped."""
        heading = f"<h2>{escape(self.texts['nearest'])}</h2>"
        if shown.nearest is None:
            return f"{heading}<p>{escape(self.texts['nearest_missing'])}</p>"
        if not shown.nearest:
            return f"{heading}<p>{escape(self.texts['nearest_none'])}</p>"
        items = (
            f'<li><div class="asked">{escape(question)}</div><div class="answered">{escape(answer)}</div></li>'
            for question, answer in shown.nearest
        )
        return f'{heading}<ol class="nearest">{"".join(items)}</ol>'


def build_page(chat: Chat):
    """The page as Gradio's Blocks."""
    import gradio as gr

    texts = chat.texts
    with gr.Blocks(title=texts["title"].format(model=chat.model), analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(texts['title'].format(model=chat.model))}</h1>")
        shown = gr.State(Shown(nearest=None if chat.training is None else ()))
        question = gr.Textbox(label=texts["question"], placeholder=texts["placeholder"], lines=2, autofocus=True)
        with gr.Row():
            ask = gr.Button(texts["ask"], variant="primary", scale=3, min_width=80)
            stop = gr.Button(texts["stop"], scale=1, min_width=80)
        status = gr.HTML("")
        with gr.Row():
            tuned = gr.Textbox(label=texts["tuned"], lines=5, interactive=False, min_width=280)
            base = gr.Textbox(
                label=texts["base"], lines=5, interactive=False, min_width=280, visible=chat.answerer.has_base
            )
        gr.HTML(f"<h2>{escape(texts['marking'])}</h2>")
        with gr.Row():
            good = gr.Button(texts["good"], min_width=80)
            bad = gr.Button(texts["bad"], min_width=80)
        better = gr.Textbox(label=texts["better"], placeholder=texts["better_placeholder"], lines=2)
        save = gr.Button(texts["save"])
        marked = gr.HTML("")
        nearest = gr.HTML(chat.nearest_html(shown.value))

        stops: dict[str | None, threading.Event] = {}  # by browser tab

        # Not by Gradio's `cancels`, which leaves the boxes of a generator that it ends marked as errors.
        def asked(text: str, request: gr.Request):
            stops[request.session_hash] = stopped = threading.Event()
            for now in chat.ask(text, stopped):
                yield now, now.tuned, now.base, chat.nearest_html(now), escape(now.status), "", ""
            stops.pop(request.session_hash, None)

        outputs = [shown, tuned, base, nearest, status, better, marked]

        def stop_answer(request: gr.Request) -> None:
            if request.session_hash in stops:
                stops[request.session_hash].set()

        for trigger, name in ((ask.click, "ask"), (question.submit, False)):
            trigger(asked, question, outputs, api_name=name, concurrency_limit=1, concurrency_id="ask")
        stop.click(stop_answer, None, None, api_name="stop", queue=False)
        good.click(lambda now: escape(chat.mark(now, GOOD)), shown, marked, api_name="good")
        bad.click(lambda now: escape(chat.mark(now, BAD)), shown, marked, api_name="bad")
        save.click(lambda now, text: escape(chat.mark_better(now, text)), [shown, better], marked, api_name="better")
    return page


class OwnSourcesOnly:
    """Adds POLICY to every response (ASGI)."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def build_app(chat: Chat, password: str | None):
    """The page as an ASGI app. Without a password it answers only where it is asked as this machine itself."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if not password:  # a page of another site whose name leads to 127.0.0.1 cannot ask
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.add_middleware(OwnSourcesOnly)
    font = ["system-ui", "Noto Sans KR", "Noto Sans CJK KR", "Malgun Gothic", "sans-serif"]
    return gr.mount_gradio_app(
        app,
        build_page(chat),
        path="/",
        auth=(USER, password) if password else None,
        auth_message=escape(chat.texts["login"].format(user=USER)),
        theme=gr.themes.Default(font=font, font_mono=["monospace"]),
        css=STYLE,
        footer_links=[],
        run_history=False,  # the browser would keep every question
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=1,  # byte: the page takes no files
    )


def known_questions(run: Path, data: Path | None) -> TrainingQuestions | None:
    """The questions that a run was trained on, in `data` or where the run says; None, with a line, where it is gone."""
    from llm_qa.evaluation.predict.run_data import data_of_run, training_records

    try:
        records = training_records(run, data or data_of_run(run))
    except UserError as error:
        say(f"note: the page shows no training questions: {error}")
        return None
    return TrainingQuestions(records) if records else None
