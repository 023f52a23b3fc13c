"""A real server process with a small model, asked by OpenAI's own client."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from command_line import ROOT, environment, run_script
from server import serving

openai = pytest.importorskip("openai", reason="the optional openai is not installed")
httpx = pytest.importorskip("httpx", reason="the optional httpx is not installed")
pytest.importorskip("fastapi", reason="the optional fastapi is not installed")
pytest.importorskip("uvicorn", reason="the optional uvicorn is not installed")

pytestmark = pytest.mark.optional
QUESTION = "결로는 어떻게 하나요?"
ASKED = [{"role": "user", "content": QUESTION}]


def flags(folder, decoder="plain"):
    return ["--model", folder, "--base-precision", "fp32", "--decoder", decoder, "--name", "tiny"]


@pytest.fixture(scope="module", params=["plain", "static"])
def url(request, neox_folder):
    with serving(*flags(neox_folder, request.param), "--max-new-tokens", "24", "--batch-size", "8") as (url, _):
        yield url


@pytest.fixture(scope="module")
def plain_url(neox_folder):
    with serving(*flags(neox_folder), "--max-body-bytes", "100000") as (url, _):
        yield url


def client(url, kind=None, key="none"):
    return (kind or openai.OpenAI)(base_url=f"{url}/v1", api_key=key, timeout=60, max_retries=0)


def chat(url, **more):
    return client(url).chat.completions.create(**{"model": "tiny", "messages": ASKED, "max_tokens": 24, **more})


def test_the_answer_is_ask_pys_also_when_streamed(url, neox_folder):
    done = run_script("scripts/ask.py", *flags(neox_folder)[:-2], "--max-new-tokens", "24", QUESTION)
    assert done.returncode == 0, done.stderr
    whole = chat(url)
    assert whole.choices[0].message.content
    assert whole.choices[0].message.content in done.stdout
    chunks = list(chat(url, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    from_prompt = client(url).completions.create(model="tiny", prompt=f"### 질문: {QUESTION}\n\n### 답변:")
    assert from_prompt.choices[0].text == whole.choices[0].message.content
    assert [model.id for model in client(url).models.list()] == ["tiny"]


def test_earlier_turns_and_the_systems_message_go_before_the_question_as_in_training(url):
    earlier = [("developer", "집입니다."), ("user", "왜?"), ("assistant", "결로는 환기로 줄입니다")]
    messages = [*({"role": role, "content": text} for role, text in earlier), *ASKED]
    prompt = f"### 맥락: 집입니다.\n\n질문: 왜?\n\n답변: 결로는 환기로 줄입니다\n\n### 질문: {QUESTION}\n\n### 답변:"
    whole, from_prompt = chat(url, messages=messages), client(url).completions.create(model="tiny", prompt=prompt)
    assert whole.choices[0].message.content == from_prompt.choices[0].text
    assert whole.usage == from_prompt.usage
    assert whole.usage.prompt_tokens > chat(url).usage.prompt_tokens


def test_sampling_with_a_seed_repeats_and_a_stop_text_ends(url):
    drawn = [chat(url, temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    whole = chat(url).choices[0].message.content
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    stopped = chat(url, stop=[middle]).choices[0]
    assert stopped.message.content == whole.partition(middle)[0].strip()
    assert stopped.finish_reason == "stop"


def test_200_questions_at_once_are_all_answered_and_each_as_if_alone(url):
    questions = [f"{number}번은 어떻게 하나요?" for number in range(200)]

    async def ask_all():
        async with client(url, openai.AsyncOpenAI) as asker:
            asked = [
                asker.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": question}], max_tokens=6 + number % 5
                )
                for number, question in enumerate(questions)
            ]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    assert len(answers) == 200
    for number in (0, 77, 199):
        alone = chat(url, messages=[{"role": "user", "content": questions[number]}], max_tokens=6 + number % 5)
        assert answers[number].choices[0].message.content == alone.choices[0].message.content


def state(url):
    return httpx.get(f"{url}/health").json()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(url, stream):
    body = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 400, "temperature": 2.0, "stream": stream})
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode()
    for _ in range(20):  # more than the rows
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(request)
            if stream:
                assert connection.recv(100)
    begin = time.monotonic()
    while any(state(url)[kind] for kind in ("answering", "waiting")) and time.monotonic() < begin + 30:
        time.sleep(0.02)
    assert state(url) == {"status": "ok", "answering": 0, "waiting": 0}
    assert chat(url).choices[0].message.content


def prompts_of_app(tokenizer, context_of, context, *bodies):
    """(statuses, prompts that reach the engine) of chats with an app whose model has so much context."""
    from llm_qa.serving.app import Limits, build_app

    prompts = []

    class EndsAtOnce:
        ends = (tokenizer.eos_token_id,)

        def submit(self, job):
            prompts.append(job.prompt)
            job.told([tokenizer.eos_token_id], True)
            return True

        def cancel(self, job):
            pass

    async def ask():
        app = build_app(EndsAtOnce(), tokenizer, "tiny", Limits(100_000, context, 64, 8), None, context_of)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as web:
            return [(await web.post("/v1/chat/completions", json={"model": "tiny", **body})) for body in bodies]

    return [answer.status_code for answer in asyncio.run(ask())], prompts


def test_references_of_a_run_go_before_the_question(tokenizer):
    from llm_qa.data.prompts import encode_prompts

    def context_of(question, before):
        return f"{question}의 참고" if isinstance(before, str) else (*before, ("passage", f"{question}의 참고"))

    statuses, prompts = prompts_of_app(tokenizer, context_of, 512, {"messages": ASKED})
    assert statuses == [200]
    assert prompts == encode_prompts(tokenizer, [(QUESTION, f"{QUESTION}의 참고")])


def test_references_that_do_not_fit_are_shortened_and_what_the_client_sent_is_not(tokenizer):
    from llm_qa.data.prompts import encode_prompts

    long = "벽지가 들뜨면 풀을 다시 바릅니다 " * 40

    def context_of(question, before):
        return long if isinstance(before, str) else (("passage", long), *before)

    earlier = [{"role": "user", "content": "왜?"}, {"role": "assistant", "content": "네."}]
    too_long = [{"role": "user", "content": long}]
    bodies = [{"messages": ASKED}, {"messages": ASKED, "max_tokens": 32}, {"messages": [*earlier, *ASKED]}]
    statuses, prompts = prompts_of_app(tokenizer, context_of, 96, *bodies, {"messages": too_long})
    assert statuses == [200, 200, 200, 400]
    assert [96 - len(prompt) >= answer for prompt, answer in zip(prompts, (8, 32, 8), strict=True)] == [True] * 3
    (alone,) = encode_prompts(tokenizer, [(QUESTION, "")])
    assert len(alone) < len(prompts[1]) < len(prompts[0]), "as much of the references as fits"
    assert prompts[2] == encode_prompts(tokenizer, [(QUESTION, (("user", "왜?"), ("assistant", "네.")))])[0]


def test_work_for_a_client_that_has_gone_is_cancelled():
    from llm_qa.serving.app import unless_gone
    from llm_qa.serving.schema import ApiError

    cancelled = asyncio.Event()

    class Gone:
        async def receive(self):
            return {"type": "http.disconnect"}

    async def never_ends():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(ApiError, match="The client has gone"):
        asyncio.run(unless_gone(Gone(), never_ends()))
    assert cancelled.is_set()


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"model": "gpt-4"}, 404, "There is no model 'gpt-4' here"),
        ({"max_tokens": 100_000}, 400, "the model's context is 512 tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "The question is empty"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "cannot be used"),
        ({"messages": [{"role": "user", "content": "왜? " * 2000}]}, 400, "the model's context is 512 tokens"),
        ({"messages": [{"role": "user", "content": "가" * 90_000}]}, 413, "more than 100,000 bytes"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"n": 2}, 400, "n: "),
        ({"stop": ["a"] * 5}, 400, "stop: at most 4"),
    ],
)
def test_what_cannot_be_answered_is_a_clear_error(plain_url, change, status, sentence):
    data = json.dumps({"model": "tiny", "messages": ASKED, **change}).encode()
    response = httpx.post(
        f"{plain_url}/v1/chat/completions", content=data, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status, response.text
    assert sentence in response.json()["error"]["message"]


def test_other_sites_pages_cannot_ask(plain_url):
    data = json.dumps({"model": "tiny", "messages": ASKED}).encode()
    address = f"{plain_url}/v1/chat/completions"
    assert httpx.post(address, content=data, headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(address, json={}, headers={"Host": "evil.example:8000"}).status_code == 400


def hostile(random_, address):
    """One request with a wrong size, type or encoding."""
    values = [None, True, -1, 0, 2**70, 1e308, "", "가" * 3000, "\x00", "\ud83d", [], [[]], {}, {"a": [{}]}]
    body = {"model": "tiny", "messages": [dict(ASKED[0])], "max_tokens": 1, "prompt": "가"}
    names = [*body, "temperature", "top_p", "seed", "stop", "stream", "stream_options", "n", "tools", "user"]
    for _ in range(random_.randint(1, 3)):
        body[random_.choice(names)] = random_.choice(values)
    if random_.random() < 0.3 and body["messages"] and isinstance(body["messages"], list):
        body["messages"] = [{"role": random_.choice(values), "content": random_.choice(values)}]
    data = json.dumps(body, ensure_ascii=True).encode()
    kind = random_.randrange(7)
    if kind == 0:
        data = random_.randbytes(random_.randrange(300))
    elif kind == 1:
        data = data[: random_.randrange(len(data))]
    elif kind == 2:
        data = json.dumps(body).encode(random_.choice(["utf-16", "utf-32"]))
    elif kind == 3:
        data = random_.choice([b"[" * 90_000, b'{"a":' * 10_000, b"1" * 50_000, b"x" * 200_000])
    headers = {"Content-Type": random_.choice(["application/json"] * 8 + ["text/plain", "", "application/json; a=b"])}
    path = random_.choice(["chat/completions"] * 4 + ["completions"] * 3 + ["models", "%00", "../..", "models/%ff"])
    method = random_.choice(["POST"] * 9 + ["PUT", "DELETE", "GET"])
    return httpx.Request(method, f"{address}/v1/{path}", content=data, headers=headers)


def try_hostile(url, count):
    """Send `count` hostile requests, and count statuses; none may be the server's own fault."""
    statuses = {}
    random_ = random.Random(0)
    with httpx.Client(timeout=60) as asker:
        for number in range(count):
            request = hostile(random_, url)
            response = asker.send(request)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code < 500, (number, request.content[:300], response.text)
            if response.status_code >= 400:
                assert response.json()["error"]["message"], number
    assert state(url)["status"] == "ok"
    assert chat(url).choices[0].message.content
    return statuses


def test_hundreds_of_hostile_requests_do_no_harm(plain_url):
    statuses = try_hostile(plain_url, 400)
    assert {200, 400, 404, 405, 413, 415} <= statuses.keys(), statuses


@pytest.mark.slow
def test_10000_hostile_requests_do_no_harm(plain_url):
    print(try_hostile(plain_url, 10_000))


def test_a_full_queue_answers_429_and_sigterm_answers_what_was_taken(neox_folder):
    more = ["--batch-size", "1", "--max-queue", "2"]
    with serving(*flags(neox_folder), *more) as (url, process):

        async def ask_many():
            async with client(url, openai.AsyncOpenAI) as asker:
                asked = [
                    asyncio.ensure_future(
                        asker.chat.completions.create(model="tiny", messages=ASKED, max_tokens=300, temperature=2.0)
                    )
                    for _ in range(12)
                ]
                begin = time.monotonic()
                while state(url)["waiting"] < 2 and time.monotonic() < begin + 60:
                    await asyncio.sleep(0.02)
                assert state(url)["waiting"] >= 2
                await asyncio.wait(asked, timeout=0.3)
                process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked, return_exceptions=True)

        answers = asyncio.run(ask_many())
        answered = [answer for answer in answers if not isinstance(answer, Exception)]
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        assert len(answered) >= 3
        assert all(answer.choices[0].message.content for answer in answered)
        assert refused
        assert len(answered) + len(refused) == 12, answers
        assert process.wait(30) == 0
        assert "every request that was taken is answered" in process.stdout.read()


def test_a_key_is_asked_for(neox_folder):
    with serving(*flags(neox_folder), "--api-key", "secret") as (url, _):
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            client(url, key="wrong").models.list()
        assert httpx.post(f"{url}/v1/completions", json={}).status_code == 401
        assert [model.id for model in client(url, key="secret").models.list()] == ["tiny"]


def test_mistakes_are_one_sentence(neox_folder):
    done = run_script("scripts/serve.py", *flags(neox_folder), "--host", "0.0.0.0")
    assert done.returncode == 2
    assert done.stderr == "error: --host 0.0.0.0 lets other machines ask: give an --api-key that they must send.\n"


def test_missing_packages_are_one_sentence(neox_folder):
    hide = (
        "import importlib.util as u, runpy, sys; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'fastapi' "
    )
    hide += "else f(n, *a); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", hide, "scripts/serve.py", *map(str, flags(neox_folder))]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: Serving needs fastapi: make install-serve, or pip install -e '.[serve]'.\n"
