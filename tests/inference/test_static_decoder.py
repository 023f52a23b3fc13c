"""Static decoding against transformers' generate and the model's own forward pass."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config

from llm_qa.config.recipe import make_recipe
from llm_qa.inference import continuous_batching, merged_weights, static_decoder
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import Request, StaticDecoder, reason_against
from llm_qa.models import embedded
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base

EOS, PAD, VOCABULARY = 7, 5, 320
LENGTHS = [9, 1, 30, 17, 4, 12, 23]


def build(*, lora: bool = True, initializer_range: float = 0.15, **values):
    """A random tiny model, its B not 0, with weights large enough that greedy answers differ and wander."""
    recipe = make_recipe({**values, **({} if lora else {"method": "full"})})
    config = embedded.model_config(VOCABULARY, EOS)
    config.initializer_range = initializer_range
    model = random_base(config, resolve_precision(recipe, None), "cpu")
    if lora:
        model = add_lora(model, recipe)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_prompts(lengths=LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(8, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def plain_answers(model, prompts, max_new_tokens, eos=EOS) -> list[list[int]]:
    """transformers' generate, one prompt at a time; each answer up to and with its eos."""
    answers = []
    for prompt in prompts:
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=PAD,
            use_cache=True,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def decoder_of(model, rows=3, context=64, eos=EOS, folded=False) -> StaticDecoder:
    return StaticDecoder(model, rows, context, eos_token_id=eos, pad_token_id=PAD, folded=folded)


def generate(decoder, prompts, max_new_tokens, **how) -> list[list[int]]:
    return continuous_batching.generate(decoder, prompts, GenerationSettings(max_new_tokens), **how)


def begin(decoder, prompts, max_new_tokens) -> None:
    """Read prompts into the first rows."""
    settings = GenerationSettings(max_new_tokens)
    decoder.prefill({row: Request(prompt, settings) for row, prompt in enumerate(prompts)})


KINDS = [
    {"base_precision": "fp32"},
    {"base_precision": "fp32", "lora": False},
    {"base_precision": "nf4"},
    {"base_precision": "nf4", "double_quant": False},
]


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("values", KINDS[:3], ids=str)
def test_answers_are_those_of_generate(values, folded):
    model, prompts = build(**values), make_prompts()
    wanted = plain_answers(model, prompts, 20, eos=-1)
    got = generate(decoder_of(model, eos=-1, folded=folded), prompts, 20)
    assert got == wanted
    assert len({token for answer in wanted for token in answer}) > 20  # not one token again and again


@pytest.mark.parametrize("refilled", [1, 1 / 8, 0])
def test_an_answer_ends_at_its_eos_and_the_others_go_on(refilled, monkeypatch):
    monkeypatch.setattr(continuous_batching, "LOOK_EVERY", 4)
    model, prompts = build(base_precision="fp32"), make_prompts()
    endless = plain_answers(model, prompts, 20, eos=-1)
    eos = endless[0][6]  # in the middle of at least one answer
    wanted = plain_answers(model, prompts, 20, eos=eos)
    assert len({len(answer) for answer in wanted}) > 1
    heard = []
    got = generate(decoder_of(model, eos=eos), prompts, 20, refilled=refilled, answered=heard.append)
    assert got == wanted
    assert sum(heard) == len(prompts)


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_any_number_of_rows_gives_the_same(rows):
    model, prompts = build(base_precision="fp32"), make_prompts()
    assert generate(decoder_of(model, rows), prompts, 8) == plain_answers(model, prompts, 8)


def test_an_answer_that_ends_at_once_and_a_limit_of_one():
    model, prompts = build(base_precision="fp32"), make_prompts()
    first = plain_answers(model, prompts, 1, eos=-1)
    assert generate(decoder_of(model, eos=-1), prompts, 1) == first
    eos = first[2][0]
    assert generate(decoder_of(model, eos=eos), prompts, 9) == plain_answers(model, prompts, 9, eos=eos)


def test_the_context_may_be_filled_to_its_end_and_no_further():
    model, prompts = build(base_precision="fp32"), make_prompts([70, 3])
    decoder = decoder_of(model, rows=2, context=80, eos=-1)  # crosses a bucket, ends in a part of one
    assert generate(decoder, prompts, 10) == plain_answers(model, prompts, 10, eos=-1)
    with pytest.raises(ValueError, match="70 tokens and 11 new ones exceed the context of 80"):
        generate(decoder, prompts, 11)


def test_the_decoder_is_used_again_for_other_prompts():
    model = build(base_precision="fp32")
    decoder = decoder_of(model, eos=-1)
    for lengths in ([40, 2], [5, 6, 7, 8], []):
        prompts = make_prompts(lengths)
        assert generate(decoder, prompts, 12) == plain_answers(model, prompts, 12, eos=-1)


def test_long_prompts_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(static_decoder, "PREFILL_TOKENS", 40)
    model, prompts = build(base_precision="fp32"), make_prompts()
    assert generate(decoder_of(model, 7), prompts, 6) == plain_answers(model, prompts, 6)


@pytest.mark.parametrize("values", KINDS, ids=str)
def test_logits_of_prompts_and_of_every_step_are_those_of_a_whole_forward_pass(values):
    model, prompts = build(**values), make_prompts()
    decoder = decoder_of(model, len(prompts), eos=-1)
    begin(decoder, prompts, 20)
    for step in range(8):
        for row, prompt in enumerate(prompts):
            tokens = prompt + decoder.generated[row, :step].tolist()
            with torch.no_grad():
                wanted = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(decoder.logits[row], wanted, rtol=1e-4, atol=1e-4)
        decoder.step(64)


@pytest.mark.parametrize("base_precision", ["fp32", "nf4"])
def test_the_adapter_counts_as_it_was_switched_when_the_decoder_was_made(base_precision):
    model, prompts = build(base_precision=base_precision), make_prompts()
    tuned = plain_answers(model, prompts, 10, eos=-1)
    with model.disable_adapter():
        base = plain_answers(model, prompts, 10, eos=-1)
        decoders = [decoder_of(model, eos=-1, folded=folded) for folded in (False, True)]
    assert base != tuned
    assert [generate(decoder, prompts, 10) for decoder in decoders] == [base, base]
    assert generate(decoder_of(model, eos=-1), prompts, 10) == tuned


@pytest.mark.parametrize("base_precision", ["fp32", "nf4"])
def test_folded_equals_unfolded_to_rounding(base_precision):
    model, prompts = build(base_precision=base_precision), make_prompts()
    logits = []
    for folded in (False, True):
        decoder = decoder_of(model, len(prompts), folded=folded)
        begin(decoder, prompts, 20)
        decoder.step(64)
        logits.append(decoder.logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(*logits)


@pytest.mark.parametrize(
    ("values", "folded", "bound"),
    [
        ({"base_precision": "nf4"}, False, 1e-5),
        ({"base_precision": "fp32"}, True, 1e-5),
        ({"base_precision": "fp8"}, False, 1e-2),  # a rounding may fall to the other side
        ({"base_precision": "bf16"}, False, 3e-2),
        ({"base_precision": "bf16"}, True, 3e-2),
        ({"base_precision": "nf4", "compute_dtype": "bf16"}, True, 3e-2),
    ],
    ids=str,
)
def test_difference_is_rounding_alone(values, folded, bound):
    model = build(initializer_range=0.05, **values)
    assert decoder_of(model, folded=folded).difference() < bound


def test_difference_finds_what_is_wrong_and_leaves_the_decoder_usable():
    model, prompts = build(base_precision="fp32"), make_prompts()
    decoder = decoder_of(model)
    assert decoder.difference() < 1e-5
    assert generate(decoder, prompts, 6) == plain_answers(model, prompts, 6)
    layer = decoder.layers[1]
    decoder.layers[1] = layer._replace(dense=layer.dense._replace(weight=[-layer.dense.weight[0]]))
    assert decoder.difference() > 0.05


class NothingAsked(TorchDispatchMode):
    """Refuses what makes a host wait for its device: a value, or a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asks = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):  # by numbers, or by a mask
            asks = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not asks, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("base_precision", "sampled"), [("fp32", False), ("nf4", False), ("fp32", True)])
def test_a_step_asks_the_device_for_nothing(base_precision, sampled):
    decoder, prompts = decoder_of(build(base_precision=base_precision)), make_prompts([3, 9])
    begin(decoder, prompts, 5)
    if sampled:
        settings = GenerationSettings(5, do_sample=True, temperature=0.9, top_k=9, top_p=0.9, repetition_penalty=1.2)
        decoder.prefill({0: Request(prompts[0], settings)})
    places = [tensor.data_ptr() for tensor in (decoder.tokens, decoder.positions, decoder.finished, decoder.logits)]
    with NothingAsked():
        decoder.step(64)
        decoder.step(64)
    assert places == [
        tensor.data_ptr() for tensor in (decoder.tokens, decoder.positions, decoder.finished, decoder.logits)
    ]
    with NothingAsked(), pytest.raises(AssertionError, match="waits for the device"):
        decoder.finished.all().item()


def test_each_reach_is_captured_once_and_a_capture_is_no_step(monkeypatch):
    """A CUDA graph's bookkeeping on the CPU: a capture runs nothing, a replay runs what was captured."""
    model, prompts = build(base_precision="fp32"), make_prompts([58, 20])
    decoder = decoder_of(model, rows=2, context=136, eos=-1)
    decoder.graphed, step, captured = True, decoder._step, []

    class Graph:
        def pool(self):
            return None

        def replay(self):
            step(*self.kind)

    @contextmanager
    def capture(graph, pool):
        def record(*kind):
            graph.kind = kind
            captured.append(kind)

        decoder._step = record
        yield
        decoder._step = step

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"CUDAGraph": Graph, "graph": capture, "Stream": lambda: stream, "current_stream": lambda: stream}
    for name, fake in {**fakes, "stream": lambda stream: nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert generate(decoder, prompts, 40) == plain_answers(model, prompts, 40, eos=-1)
    assert generate(decoder, prompts[::-1], 40) == plain_answers(model, prompts[::-1], 40, eos=-1)
    assert captured == [(64, False), (128, False)]


def test_folding_is_decided_by_what_is_free(monkeypatch):
    layers = build(base_precision="nf4").get_base_model().gpt_neox.layers
    modules = [module for layer in layers for module in static_decoder.linear_modules(layer)]
    copy = sum(module.in_features * module.out_features for module in modules) * 4

    def choose(free, cache=0):
        monkeypatch.setattr(merged_weights.psutil, "virtual_memory", lambda: type("", (), {"available": free}))
        return merged_weights.choose_folding(modules, torch.float32, 3, cache)

    assert choose(2 * copy)[0]
    assert not choose(copy)[0]
    assert not choose(2 * copy, cache=copy)[0]
    assert "are free" in choose(2**40)[1]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"base_precision": "fp8"}, "fp8"),
        ({"base_precision": "fp32", "lora": False}, "no adapter or quantised weight to merge"),
    ],
    ids=str,
)
def test_what_gains_nothing_is_not_folded(values, why):
    decoder = decoder_of(build(**values), folded=None)
    assert "not merged" in decoder.report
    assert why in decoder.report


def test_the_report_says_what_was_chosen():
    report = decoder_of(build(base_precision="nf4"), rows=3, context=61, folded=None).report
    assert report.startswith("static decoding: 3 rows of 64 positions, weights merged into fp32 (the copy takes ")


def test_who_cannot_be_decoded_is_told_why():
    config = embedded.model_config(VOCABULARY, EOS)
    assert reason_against(config, None) is None
    assert reason_against(config, (9, 0)) is None
    assert "capability is 7.5" in reason_against(config, (7, 5))
    assert "gpt2" in reason_against(GPT2Config(), None)
    for name, value in {"use_parallel_residual": False, "hidden_act": "gelu_new", "attention_bias": False}.items():
        other = embedded.model_config(VOCABULARY, EOS)
        setattr(other, name, value)
        assert "different structure" in reason_against(other, None)
    config.rope_parameters = {**config.rope_parameters, "rope_type": "dynamic"}
    assert "dynamic" in reason_against(config, None)
