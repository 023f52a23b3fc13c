"""Whether packed documents stay apart: the small model's word against whole models, for every architecture."""

import random

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, small_config
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, BertConfig

from llm_qa.console import UserError
from llm_qa.models import isolation
from llm_qa.models.isolation import attention_of, few_layers

HERE = [name for name in ARCHITECTURES if name in CONFIG_MAPPING]


def packed_against_alone(config) -> float:
    """The largest change that a pack makes to a document's logits in a whole random model, relative to their spread."""
    if hasattr(config, "initializer_range"):
        config.initializer_range = 0.3  # transformers' own would make of every layer next to nothing
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    one, two, three = (torch.randint(3, config.vocab_size, (length,)) for length in (20, 30, 25))

    def logits(*documents):
        ids = torch.cat(documents)[None]
        positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
        with torch.no_grad():
            return model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, -len(three) :]

    alone = logits(three)
    return ((logits(one, two, three) - alone).abs().max() / alone.std()).item()


@pytest.mark.parametrize("name", HERE)
def test_what_a_small_model_says_is_true_of_the_whole_one(name):
    config = small_config(name)
    attention, difference = attention_of(config), packed_against_alone(config)
    has_sdpa = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa
    assert attention.implementation == ("sdpa" if has_sdpa else "eager")
    assert attention.isolates is (difference < 1e-4)
    assert attention.isolates or difference > 1e-2, "no verdict is a matter of rounding"


def test_both_verdicts_are_among_them():
    found = {name: attention_of(small_config(name)) for name in ("llama", "falcon", "gptj", "bloom")}
    assert {name: (attention.implementation, attention.isolates) for name, attention in found.items()} == {
        "llama": ("sdpa", True),
        "falcon": ("sdpa", False),
        "gptj": ("eager", True),
        "bloom": ("eager", False),
    }


def test_a_kind_of_layer_that_comes_late_is_tried_too():
    config = small_config("lfm2", num_hidden_layers=6, layer_types=["full_attention"] * 4 + ["conv", "full_attention"])
    assert few_layers(config).num_hidden_layers == 5
    assert not attention_of(config).isolates
    assert few_layers(small_config("llama")).num_hidden_layers == 1


def test_kinds_that_no_list_of_the_config_tells_are_found_in_the_modules():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = CONFIG_MAPPING["jamba"](**sizes, num_experts=1, attn_layer_period=3, attn_layer_offset=2, vocab_size=200)
    assert few_layers(config).num_hidden_layers == 3


def test_random_states_and_the_given_config_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(isolation, "_known", {})
    config = small_config("llama")
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), config.to_dict()
    attention_of(config)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate(), config.to_dict())


def test_it_is_tried_once_and_known_again_after_loading(monkeypatch):
    config = small_config("llama")
    known = attention_of(config)
    monkeypatch.setattr(isolation, "_experiment", None)
    config.use_cache, config.eos_token_id = False, 7
    assert attention_of(config) is known


def test_a_model_that_looks_ahead_is_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(UserError, match="BertLMHeadModel cannot be trained or scored here: padding after a document"):
        attention_of(BertConfig(**sizes, vocab_size=200))


def test_without_a_small_model_packs_are_not_trusted(monkeypatch):
    monkeypatch.setattr(isolation, "_known", {})
    monkeypatch.setattr(isolation, "few_layers", lambda config: int("no"))
    attention = attention_of(small_config("gptj"))
    assert (attention.implementation, attention.isolates) == ("eager", False)
    assert "could not be tested on a small GPTJForCausalLM (ValueError: invalid literal" in attention.report
