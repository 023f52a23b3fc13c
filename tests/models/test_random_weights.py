"""Random models have the true shapes and the ordinary initialisation, and are quantised layer by layer."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from llm_qa.config.recipe import make_recipe
from llm_qa.models import embedded, random_weights
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base

KOGPT2 = GPT2Config(vocab_size=200, n_embd=64, n_layer=3, n_head=4, n_positions=64)


def precision(base: str):
    return resolve_precision(make_recipe({"base_precision": base}), None)


@pytest.mark.parametrize("config", [embedded.model_config(300, 0), KOGPT2], ids=["gpt_neox", "gpt2"])
def test_the_names_shapes_and_spread_are_transformers_own(config):
    layers = config.num_hidden_layers
    got = random_base(config, precision("fp32"), "cpu").state_dict()
    assert config.num_hidden_layers == layers > 1
    wanted = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.to_dict())).state_dict()
    assert {name: value.shape for name, value in got.items()} == {name: value.shape for name, value in wanted.items()}
    for name, value in wanted.items():
        assert got[name].float().std().item() == pytest.approx(value.float().std().item(), rel=0.2, abs=1e-6), name


@pytest.mark.parametrize("base", ["nf4", "fp8"])
def test_one_layer_at_a_time_is_in_16_bits(monkeypatch, base):
    waiting = []
    name = {"nf4": "quantize", "fp8": "quantize_fp8"}[base]
    plain = getattr(random_weights, name)

    def watched(module, *rest):
        waiting.append(len([m for m in module.modules() if type(m) is torch.nn.Linear and m.out_features > 300]))
        plain(module, *rest)

    monkeypatch.setattr(random_weights, name, watched)
    config = embedded.model_config(300, 0)
    model = random_base(config, precision(base), "cpu")
    assert len(waiting) == config.num_hidden_layers
    assert max(waiting) <= 4
    assert not [layer for layer in linear_layers(model).values() if type(layer) is torch.nn.Linear]
    first, second = (layer.attention.dense.weight for layer in model.gpt_neox.layers[:2])
    assert not torch.equal(first, second)
