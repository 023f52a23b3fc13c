"""Batched answers and the bits of references, against the slow and obvious way."""

import math
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig

from llm_qa import files
from llm_qa.config.recipe import make_recipe
from llm_qa.console import Failed, UserError
from llm_qa.data.prompts import encode_documents
from llm_qa.inference.decoders import build_decoder, choose_decoder, decoder_for
from llm_qa.inference.fitting import fit_questions
from llm_qa.inference.generate import generate_answers, reference_bits
from llm_qa.inference.settings import ORIGINAL_SAMPLING, GenerationSettings, named_settings
from llm_qa.inference.static_decoder import cache_bytes
from llm_qa.models import embedded
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base

ARCHITECTURES = ["neox_folder", "gpt2_folder"]


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue(request.param), dtype=torch.float64).eval()


def test_batched_answers_are_those_of_one_question_at_a_time(model, tokenizer, records):
    questions = [(question, "") for record in records[:6] for question in record.questions]
    settings = GenerationSettings(max_new_tokens=12)
    is_distributed = generate_answers(model, tokenizer, questions, settings, batch_size=5)
    alone = [generate_answers(model, tokenizer, [question], settings, batch_size=1)[0] for question in questions]
    assert is_distributed == alone
    assert len({answer.text for answer in is_distributed}) > 1


def test_an_answer_ends_at_eos_and_says_so(model, tokenizer):
    head = model.get_output_embeddings()
    if model.config.model_type == "gpt2":
        pytest.skip("GPT-2's head is tied to its embeddings")
    with torch.no_grad():
        head.weight.zero_()
    bias = torch.zeros(head.weight.shape[0], dtype=torch.float64)
    bias[tokenizer.eos_token_id] = 1.0
    head.register_forward_hook(lambda module, args, output: output + bias)
    answer = generate_answers(model, tokenizer, [("왜?", "")], GenerationSettings(max_new_tokens=5))[0]
    assert (answer.text, answer.stopped, answer.tokens) == ("", True, 1)


def test_reference_bits_are_the_log_probability_of_each_answer_alone(model, tokenizer, records):
    items = [(question, answer, "") for record in records[:5] for question, answer in record.pairs()]
    packed = reference_bits(model, tokenizer, items, tokens_at_once=150)
    for item, bits in zip(items, packed, strict=True):
        document = encode_documents(tokenizer, [item])[0]
        ids = torch.tensor([document.input_ids])
        with torch.no_grad():
            log_probabilities = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        expected = -sum(
            log_probabilities[i - 1, document.input_ids[i]].item()
            for i in range(document.prompt_length, len(document.input_ids) - 1)  # without eos
        ) / math.log(2)
        assert bits == pytest.approx(expected, rel=1e-6)


def test_a_reference_longer_than_the_context_has_no_bits(model, tokenizer):
    bits = reference_bits(model, tokenizer, [("왜?", "길다 " * 600, ""), ("왜?", "짧다", "")])
    assert bits[0] is None
    assert bits[1] > 0


def test_nothing_is_cut_in_silence(model, tokenizer):
    long = ("무엇인가요?", "맥락 " * 600)
    settings = GenerationSettings(max_new_tokens=4)
    with pytest.raises(ValueError, match=r"does not fit into the 508 that the model has room for"):
        generate_answers(model, tokenizer, [long], settings)
    fitted = fit_questions(tokenizer, model.config, [long], settings)
    assert 1 <= generate_answers(model, tokenizer, fitted, settings)[0].tokens <= 4


@pytest.mark.parametrize(
    ("written", "limit"), [({"answer_tokens_99": 310}, 310), ({"answer_tokens_99": 40}, 128), ({}, 128)]
)
def test_answers_may_be_as_long_as_the_runs_training_answers(tmp_path, capsys, written, limit):
    files.write_json(tmp_path / files.TRAINING, written)
    files.write_text(tmp_path / files.RECIPE, "model: embedded\n")
    assert named_settings("greedy", run=tmp_path).max_new_tokens == limit
    told = capsys.readouterr().out
    assert f"--max-new-tokens {limit}: " in told
    assert ("99% of the training answers" in told) is bool(written)
    assert named_settings("greedy", 7, run=tmp_path).max_new_tokens == 7
    assert named_settings("original", run=tmp_path).max_new_tokens == 300
    assert capsys.readouterr().out == ""


def test_sampling_numbers_are_passed_only_where_it_samples():
    assert GenerationSettings(8).arguments() == {"max_new_tokens": 8, "do_sample": False}
    assert ORIGINAL_SAMPLING.arguments() == {
        "max_new_tokens": 300,
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 1,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
    }


def test_a_length_that_is_given_overrides_either_sampling():
    assert named_settings("greedy") == GenerationSettings()
    assert named_settings("greedy", 7).max_new_tokens == named_settings("original", 7).max_new_tokens == 7
    assert named_settings("original", 7, seed=3).temperature == 0.9
    assert named_settings("original", seed=3).seed == 3
    assert named_settings("original") == ORIGINAL_SAMPLING


def test_the_static_decoder_gives_the_answers_of_the_plain_one(neox_folder, tokenizer, records):
    model = AutoModelForCausalLM.from_pretrained(neox_folder, dtype=torch.float32).eval()
    questions = [(question, "") for record in records[:6] for question in record.questions]
    questions.append(("무엇인가요?", "맥락 " * 600))  # cut to the model's context
    settings = GenerationSettings(max_new_tokens=12)
    questions = fit_questions(tokenizer, model.config, questions, settings)
    decoder = decoder_for(model, tokenizer, questions, settings, 5)
    static = generate_answers(model, tokenizer, questions, settings, decoder=decoder)
    assert static == generate_answers(model, tokenizer, questions, settings, batch_size=1)


def test_a_static_decoder_that_differs_is_not_used(neox_folder, tokenizer, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(neox_folder, dtype=torch.float32).eval()
    monkeypatch.setattr("llm_qa.inference.decoders.StaticDecoder.difference", lambda self: float("nan"))
    with pytest.raises(Failed, match="differ by nan% from the model's own here: answer with --decoder plain"):
        decoder_for(model, tokenizer, [("왜?", "")], GenerationSettings(4), 1)


@pytest.mark.parametrize(("base_precision", "accepted"), [("fp8", True), ("fp32", False)])
def test_fp8_may_differ_more(tokenizer, monkeypatch, base_precision, accepted):
    recipe = make_recipe({"base_precision": base_precision})
    config = embedded.model_config(len(tokenizer), tokenizer.eos_token_id)
    model = random_base(config, resolve_precision(recipe, None), "cpu")
    monkeypatch.setattr("llm_qa.inference.decoders.StaticDecoder.difference", lambda self: 0.1)
    with nullcontext() if accepted else pytest.raises(Failed, match="differ by 10%"):
        build_decoder(model.eval(), tokenizer, 1, 64)


def test_which_decoder_answers_is_chosen_and_said(model, monkeypatch, capsys):
    assert choose_decoder("plain", model.config) == "plain"
    assert choose_decoder("auto", model.config) == "plain"
    monkeypatch.setattr("llm_qa.inference.decoders.gpu_capability", lambda: (9, 0))
    if model.config.model_type == "gpt2":
        assert choose_decoder("auto", model.config) == "plain"
        with pytest.raises(
            UserError, match="because the model is a gpt2, and the static decoder supports only gpt_neox"
        ):
            choose_decoder("static", model.config)
        assert capsys.readouterr().out.count("answering by transformers' generate: the model is a gpt2") == 2
    else:
        assert choose_decoder("static", model.config) == choose_decoder("auto", model.config) == "static"
        assert capsys.readouterr().out == "answering by transformers' generate: there is no GPU\n"


def test_fewer_rows_where_the_cache_would_not_fit(neox_folder, tokenizer, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(neox_folder, dtype=torch.float32).eval()
    monkeypatch.setattr("llm_qa.inference.decoders.free_bytes", lambda device: 3.5 * cache_bytes(model, 1, 64))
    assert build_decoder(model, tokenizer, 8, 64).rows == 3


def test_references_are_scored_alone_where_packed_documents_would_attend_to_each_other(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    model = AutoModelForCausalLM.from_config(FalconConfig(**sizes, vocab_size=len(tokenizer))).eval()
    items = [("왜?", "습기 때문입니다", ""), ("언제?", "내일", ""), ("왜?", "습기", "")]
    is_distributed = reference_bits(model, tokenizer, items)
    assert is_distributed == pytest.approx([reference_bits(model, tokenizer, [item])[0] for item in items], rel=1e-5)
