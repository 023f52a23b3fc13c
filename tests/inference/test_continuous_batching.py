"""Requests with settings of their own, taken in turn by the rows of a static decoder; answers as they come."""

from itertools import chain

import pytest
import torch
from test_static_decoder import EOS, PAD, build, decoder_of, make_prompts, plain_answers

from llm_qa.inference.continuous_batching import AnswerQueue, generate, stream
from llm_qa.inference.settings import ORIGINAL_SAMPLING, GenerationSettings
from llm_qa.inference.static_decoder import Request
from llm_qa.inference.streaming import stream_tokens, text_pieces

SAMPLED = GenerationSettings(max_new_tokens=12, do_sample=True, temperature=1.2, top_k=40, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def model():
    return build(base_precision="fp32")


def drain(queue: AnswerQueue) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {}
    while queue:
        for handle, tokens, _ in queue.advance():
            answers.setdefault(handle, []).extend(tokens)
    return answers


@torch.inference_mode()
def original_answer(model, prompt: list[int]) -> list[int]:
    """The original's sampling by transformers: with top_k 1 it is no draw, so that the answer can be compared."""
    output = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        eos_token_id=-1, pad_token_id=PAD, **(ORIGINAL_SAMPLING.arguments() | {"max_new_tokens": 25}),
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


def test_the_originals_sampling_gives_the_answers_of_transformers(model):
    prompts = make_prompts([9, 4, 20])
    settings = GenerationSettings(**{**vars(ORIGINAL_SAMPLING), "max_new_tokens": 25})
    got = generate(decoder_of(model, rows=2, eos=-1), prompts, settings)
    assert got == [original_answer(model, prompt) for prompt in prompts]
    assert got != plain_answers(model, prompts, 25, eos=-1)  # the penalty changes them


def test_a_draw_does_not_depend_on_rows_and_companions(model):
    prompts = make_prompts()
    alone = generate(decoder_of(model, rows=1, eos=-1), prompts, SAMPLED)
    assert generate(decoder_of(model, rows=4, eos=-1), prompts, SAMPLED) == alone
    assert alone != plain_answers(model, prompts, 12, eos=-1)
    same = generate(decoder_of(model, rows=8, eos=-1), [prompts[0]] * 8, SAMPLED)
    assert same[0] == alone[0]
    assert len(set(map(tuple, same))) == 8, "a prompt several times is as many draws"


def test_greedy_and_sampled_rows_side_by_side(model):
    prompts = make_prompts()
    decoder = decoder_of(model, rows=3, eos=-1)
    queue = AnswerQueue(decoder, refilled=0)
    greedy = GenerationSettings(max_new_tokens=10)
    handles = [queue.add(Request(prompt, SAMPLED if i % 2 else greedy, i)) for i, prompt in enumerate(prompts)]
    answers = drain(queue)
    drawn, plain = generate(decoder, prompts, SAMPLED), plain_answers(model, prompts, 10, eos=-1)
    assert [answers[handle] for handle in handles] == [(drawn if i % 2 else plain)[i] for i in range(len(prompts))]
    assert all(decoder.sampler.greedy_rows), "rows that have finished ask for no sampling"


def test_a_request_that_is_cancelled_gives_its_row_to_the_next(model):
    prompts, settings = make_prompts([5, 6, 7]), GenerationSettings(max_new_tokens=20)
    queue = AnswerQueue(decoder_of(model, rows=1, eos=-1), refilled=0)
    first, second, third = (queue.add(Request(prompt, settings)) for prompt in prompts)
    assert [progress.handle for progress in queue.advance(steps=2)] == [first]
    queue.cancel(first)
    queue.cancel(second)  # still waiting
    answers = drain(queue)
    assert answers == {third: plain_answers(model, prompts[2:], 20, eos=-1)[0]}
    assert not queue


def test_what_does_not_fit_is_refused_when_it_is_added(model):
    queue = AnswerQueue(decoder_of(model, rows=1, context=64))
    with pytest.raises(ValueError, match="60 tokens and 20 new ones exceed the context of 64"):
        queue.add(Request([8] * 60, GenerationSettings(max_new_tokens=20)))
    assert not queue


@pytest.mark.parametrize("settings", [GenerationSettings(max_new_tokens=15), SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_streams_token_by_token(model, settings):
    prompt, decoder = make_prompts([9])[0], decoder_of(model, rows=1, eos=-1)
    pieces = list(stream(decoder, Request(prompt, settings)))
    assert list(chain(*pieces)) == generate(decoder, [prompt], settings)[0]
    assert max(map(len, pieces)) <= 2  # the first is reported with the one after it
    for _ in stream(decoder, Request(prompt, settings)):
        break  # leaves the decoder free
    assert list(chain(*stream(decoder, Request(prompt, settings)))) == list(chain(*pieces))


class Tokenizer:
    """Token i is the i-th byte of a text."""

    eos_token_id, pad_token_id = EOS, PAD
    text = "벽지가 🏠".encode()

    def decode(self, ids, **settings) -> str:
        return bytes(self.text[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_syllable_is_shown_once_all_its_bytes_are_there(at_once):
    ids = list(range(len(Tokenizer.text)))
    pieces = list(text_pieces(Tokenizer(), (ids[i : i + at_once] for i in range(0, len(ids), at_once))))
    assert "".join(pieces) == "벽지가 🏠"
    assert not any("\ufffd" in piece for piece in pieces)
    cut = list(text_pieces(Tokenizer(), iter([[0, 1, 2, 3]])))
    assert cut == ["벽", "\ufffd"], "what is cut in the middle of a syllable is shown as such at the end"
    assert list(text_pieces(Tokenizer(), iter([]))) == []


def test_transformers_generate_streams_the_same_and_stops_when_it_is_left(model):
    prompt, settings = make_prompts([9])[0], GenerationSettings(max_new_tokens=15)
    tokens = stream_tokens(model, Tokenizer(), prompt, settings)
    wanted = plain_answers(model, [prompt], 15)[0]
    assert list(chain(*tokens)) == wanted
    for _ in stream_tokens(model, Tokenizer(), prompt, GenerationSettings(max_new_tokens=400)):
        break
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(stream_tokens(model, Tokenizer(), prompt, GenerationSettings(max_new_tokens=-1)))
