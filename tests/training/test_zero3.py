"""Which modules ZeRO-3 gathers whole, and how far ahead."""

import pytest
import torch
from deepspeed.utils import get_z3_leaf_modules
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llm_qa.config.recipe import make_recipe
from llm_qa.models import embedded
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base
from llm_qa.training.zero3 import decoder_layers, elements, gather_by_layer

SMALL_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def neox(lora: bool):
    recipe = make_recipe({"base_precision": "fp32"})
    model = random_base(embedded.model_config(500, 0), resolve_precision(recipe, None), "cpu")
    return add_lora(model, recipe) if lora else model


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda: neox(lora=False), "GPTNeoXLayer"),
        (lambda: neox(lora=True), "GPTNeoXLayer"),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2)), "GPT2Block"),
        (lambda: LlamaForCausalLM(LlamaConfig(vocab_size=99, **SMALL_LLAMA)), "LlamaDecoderLayer"),
    ],
)
def test_every_decoder_layer_is_a_leaf_and_one_is_fetched_ahead(build, kind):
    model, config = build(), {"zero_optimization": {"stage3_prefetch_bucket_size": "auto"}}
    gather_by_layer(model, config)
    leaves = get_z3_leaf_modules(model)
    assert leaves == decoder_layers(model)
    assert [type(leaf).__name__ for leaf in leaves] == [kind] * model.config.num_hidden_layers
    assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == sum(p.numel() for p in leaves[0].parameters())


def test_the_input_of_the_first_layer_has_a_gradient_although_the_embedding_is_frozen():
    model = neox(lora=True)
    gather_by_layer(model, {"zero_optimization": {}})
    inputs = []
    decoder_layers(model)[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0].requires_grad))
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert inputs == [True]


def test_what_the_config_says_itself_is_kept():
    config = {"zero_optimization": {"stage3_prefetch_bucket_size": 7}}
    gather_by_layer(neox(lora=False), config)
    assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == 7


def test_a_model_whose_layers_nobody_names_is_said_to_be_gathered_singly(capsys):
    config = {"zero_optimization": {"stage3_prefetch_bucket_size": "auto"}}
    gather_by_layer(torch.nn.Sequential(torch.nn.Linear(2, 2)), config)
    assert "no decoder layer of Sequential" in capsys.readouterr().out
    assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == "auto"


def test_a_shared_out_parameter_counts_with_its_whole_size():
    layer = torch.nn.Linear(3, 2)
    layer.weight.ds_numel = 600
    assert elements(layer) == 602
