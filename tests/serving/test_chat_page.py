"""The chat page: what its buttons do, without a browser, and the page itself through Gradio's own client."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from command_line import ROOT, environment, run_script

from llm_qa import files
from llm_qa.data.marks import BAD, GOOD
from llm_qa.data.readers import read_files
from llm_qa.evaluation.predict.contamination import TrainingQuestions
from llm_qa.inference.generate import generate_answers
from llm_qa.inference.settings import GenerationSettings
from llm_qa.language import ENGLISH, KOREAN
from llm_qa.models.loading import load_run
from llm_qa.serving.answerer import Answer, Answerer
from llm_qa.serving.chat_page import Chat, Shown
from llm_qa.serving.chat_texts import TEXTS

QUESTION = "결로는 어떻게 하나요?"
SETTINGS = GenerationSettings(max_new_tokens=12)


@pytest.fixture(scope="module")
def answerer(lora_run):
    return Answerer(*load_run(lora_run), SETTINGS)


class Spoken:
    """In place of an Answerer: says what it is given."""

    def __init__(self, tuned, base="기반", *, ended=True):
        self.settings, self.has_base = SETTINGS, base is not None
        self.said, self.ended = {files.TUNED: tuned, files.BASE: base}, ended

    def stream(self, question, whose=files.TUNED):
        text = self.said[whose]
        yield Answer(text[:1])
        yield Answer(text, self.ended)


def chat(tmp_path, answerer, records=None, language=KOREAN):
    training = records and TrainingQuestions(records)
    return Chat(answerer, training, tmp_path / "marks.jsonl", model="mine", language=language)


def test_both_answers_are_streamed_and_are_those_of_the_model_with_and_without_its_adapter(answerer):
    asked = [(QUESTION, "")]
    for whose in (files.TUNED, files.BASE):
        *growing, last = answerer.stream(QUESTION, whose)
        if whose == files.BASE:
            with answerer.model.disable_adapter():
                (expected,) = generate_answers(answerer.model, answerer.tokenizer, asked, SETTINGS)
        else:
            (expected,) = generate_answers(answerer.model, answerer.tokenizer, asked, SETTINGS)
        assert last == (expected.text, expected.stopped), whose
        assert len({answer.text for answer in growing}) > 2
        assert all(last.text.startswith(answer.text) and not answer.ended for answer in growing)
    tuned, base = (list(answerer.stream(QUESTION, whose))[-1].text for whose in (files.TUNED, files.BASE))
    assert tuned != base


def test_what_a_run_puts_before_its_questions_is_put_there(answerer):
    before = "집은 춥습니다."
    asking = Answerer(answerer.model, answerer.tokenizer, SETTINGS, context_of=lambda question, given: before)
    (expected,) = generate_answers(answerer.model, answerer.tokenizer, [(QUESTION, before)], SETTINGS)
    assert list(asking.stream(QUESTION))[-1].text == expected.text != list(answerer.stream(QUESTION))[-1].text


def test_a_page_that_goes_away_does_not_keep_the_next_waiting(answerer):
    expected = list(answerer.stream(QUESTION))[-1]
    gone = answerer.stream(QUESTION, files.BASE)
    next(gone)  # and nobody comes back for the rest
    assert list(answerer.stream(QUESTION))[-1] == expected
    gone.close()


def test_stop_ends_the_answer_which_is_then_not_good(tmp_path):
    page, stopped = chat(tmp_path, Spoken("환기로 줄입니다")), threading.Event()
    shown = []
    for now in page.ask(QUESTION, stopped):
        shown.append(now)
        if now.tuned:
            stopped.set()
    assert (shown[-1].tuned, shown[-1].base, shown[-1].whole) == ("환", "", False)
    assert shown[-1].status == TEXTS[KOREAN]["stopped"]
    assert page.mark(shown[-1], GOOD) == TEXTS[KOREAN]["unfinished"]


def test_the_nearest_training_questions_come_with_their_answers_one_of_each_record(tmp_path, records):
    page = chat(tmp_path, Spoken("답"), records)
    *_, shown = page.ask(records[4].questions[0])
    assert shown.nearest[0] == (records[4].questions[0], records[4].answers[0])
    assert len(shown.nearest) == len({answer for _, answer in shown.nearest}) == 3
    assert records[4].answers[0] in page.nearest_html(shown)


def test_what_people_and_models_write_is_escaped(tmp_path):
    page = chat(tmp_path, Spoken("답"))
    shown = Shown(nearest=(("<script>1</script>", "<img src=x onerror=1>"),))
    assert "<script>" not in page.nearest_html(shown)
    assert "<img" not in page.nearest_html(shown)


def test_training_data_that_is_gone_is_said(tmp_path):
    page = chat(tmp_path, Spoken("답"))
    *_, shown = page.ask(QUESTION)
    assert TEXTS[KOREAN]["nearest_missing"] in page.nearest_html(shown)


def test_marks_are_kept_and_become_records(tmp_path, records):
    page = chat(tmp_path, Spoken("환기로 줄입니다"), records)
    *_, shown = page.ask(QUESTION)
    assert (shown.tuned, shown.base, shown.whole) == ("환기로 줄입니다", "기반", True)
    assert page.mark(shown, BAD) == TEXTS[KOREAN]["marked_bad"]
    assert page.mark(shown, GOOD) == TEXTS[KOREAN]["marked_good"]
    *_, other = page.ask("  마루는\n왜?")
    assert page.mark_better(other, " 7일 말립니다\n그 뒤 깝니다 ") == TEXTS[KOREAN]["marked_better"]
    lines = [json.loads(line) for line in page.marks.read_text(encoding="utf-8").splitlines()]
    assert [(line["mark"], line["better"]) for line in lines] == [
        (BAD, ""),
        (GOOD, ""),
        (BAD, "7일 말립니다\n그 뒤 깝니다"),
    ]
    assert {line["model"] for line in lines} == {"mine"}
    assert lines[0]["time"]
    kept = read_files([page.marks]).records
    assert [(record.questions, record.answers) for record in kept] == [
        ((QUESTION,), ("환기로 줄입니다",)),
        (("마루는 왜?",), ("7일 말립니다\n그 뒤 깝니다",)),
    ]


def test_what_cannot_be_marked_is_said_and_not_kept(tmp_path):
    page = chat(tmp_path, Spoken("잘린", ended=False), language=ENGLISH)
    texts = TEXTS[ENGLISH]
    assert page.mark(Shown(), BAD) == texts["nothing"]
    *_, shown = page.ask(QUESTION)
    assert "cut after 12 tokens" in shown.status
    assert page.mark(shown, GOOD) == texts["unfinished"]
    assert page.mark_better(shown, " \n ") == texts["no_better"]
    assert "cannot be used" in page.mark_better(shown, "가\x00")
    assert not page.marks.exists()


@pytest.mark.parametrize("question", ["", "  ", "가" * 5000, "가\x00"])
def test_a_question_that_cannot_be_asked_is_said_on_the_page(tmp_path, answerer, question):
    *_, shown = chat(tmp_path, answerer, language=ENGLISH).ask(question)
    assert shown.status.startswith("No answer: The question")
    assert not shown.tuned


def test_both_languages_say_the_same():
    assert TEXTS[KOREAN].keys() == TEXTS[ENGLISH].keys()
    for key, korean in TEXTS[KOREAN].items():
        assert re.findall(r"{\w+}", korean) == re.findall(r"{\w+}", TEXTS[ENGLISH][key]), key


def test_mistakes_are_said_before_anything_is_loaded(lora_run, tmp_path):
    (tmp_path / "train.csv").write_text("질문,답변\n", encoding="utf-8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flags, sentence in (
            (["--run", "runs/nowhere"], "runs/nowhere is not a run"),
            (["--run", lora_run, "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines ask: give a --password"),
            (["--run", lora_run, "--port", "70000"], "--port 70000 is not a port"),
            (["--run", lora_run, "--marks", tmp_path / "train.csv"], "holds something other than marks"),
            (["--run", lora_run, "--data", tmp_path], "is not prepared data"),
            (["--run", lora_run, "--lang", "fr"], "--lang: invalid choice: 'fr'"),
        ):
            done = run_script("scripts/chat.py", *flags)
            assert (done.returncode, sentence in done.stderr) == (2, True), (flags, done.stderr)
            assert done.stderr.count("\n") == 1
        pytest.importorskip("gradio", reason="the optional gradio is not installed")
        done = run_script("scripts/chat.py", "--run", lora_run, "--port", port)
        assert done.returncode == 2
        assert f"--port {port} cannot be listened at" in done.stderr


def test_without_gradio_the_line_that_installs_it_is_said(lora_run):
    """In a process that cannot find gradio, wherever it is installed."""
    code = (
        "import importlib.util as u, runpy, sys; find = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'gradio' else find(name, *more); "
        f"sys.argv = ['scripts/chat.py', '--run', {str(lora_run)!r}]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install -e '.[chat]'" in done.stderr


@contextmanager
def page_of(*flags):
    """The address of a page with these flags, which Ctrl-C ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 180
    process = subprocess.Popen(
        [sys.executable, "scripts/chat.py", *map(str, flags), "--port", str(port)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while True:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end, "the page does not answer"
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield url
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stdout.read()
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.optional
def test_the_page_answers_marks_and_loads_nothing_from_elsewhere(lora_run, tmp_path):
    client = pytest.importorskip("gradio_client", reason="the optional gradio is not installed").Client
    marks = tmp_path / "marks.jsonl"
    with page_of("--run", lora_run, "--marks", marks, "--max-new-tokens", "12", "--lang", "en") as url:
        asker = client(url, verbose=False)
        job = asker.submit(QUESTION, api_name="/ask")
        tuned, base, nearest, status, *_ = job.result(timeout=60)
        assert tuned != base
        assert tuned
        assert len({output[0] for output in job.outputs()}) > 2, "the answer is streamed"
        assert "training data of this model was not found" in nearest
        assert "cut after 12 tokens" in status
        assert asker.predict("7일 말립니다", api_name="/better") == TEXTS[ENGLISH]["marked_better"]
        assert "unfinished" in asker.predict(api_name="/good")
        with urllib.request.urlopen(url) as answer:
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            text = answer.read().decode()
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=.(?:https?:)?//", text)
        request = urllib.request.Request(url, headers={"Host": "elsewhere.example"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request)
    (line,) = map(json.loads, marks.read_text(encoding="utf-8").splitlines())
    assert (line["question"], line["answer"], line["better"]) == (QUESTION, tuned, "7일 말립니다")


@pytest.mark.optional
def test_with_a_password_nobody_else_may_ask(lora_run):
    pytest.importorskip("gradio", reason="the optional gradio is not installed")
    with page_of("--run", lora_run, "--password", "비밀 1") as url, pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/gradio_api/info")
