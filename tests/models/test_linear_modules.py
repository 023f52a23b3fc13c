"""Linear-module discovery: all but the head, by identity, on every kind of layer."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPTNeoXConfig, GPTNeoXForCausalLM

from llm_qa.console import UserError
from llm_qa.models.linear_modules import find_linear_modules, linear_layers

NEOX = ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]


def test_gpt_neox_has_four_linears_in_each_layer(neox_folder):
    model = AutoModelForCausalLM.from_pretrained(neox_folder)
    assert find_linear_modules(model) == NEOX
    assert len(linear_layers(model)) == 2 * 4


def test_kogpt2s_conv1d_layers_are_found(gpt2_folder):
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    assert find_linear_modules(model) == ["c_attn", "c_fc", "c_proj"]


def test_original_trap_the_head_is_excluded_whatever_its_name():
    """GPT-NeoX called it embed_out in transformers 4; a rule that knows `lm_head` would put LoRA on it."""
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    head = model.get_output_embeddings()
    model.embed_out = head
    model.get_output_embeddings = lambda: head
    if hasattr(model, "lm_head"):
        del model.lm_head
    assert find_linear_modules(model) == NEOX


@pytest.mark.parametrize("kind", ["load_in_4bit", "load_in_8bit"])
def test_original_trap_quantised_layers_are_found_as_well_as_plain_ones(neox_folder, kind):
    """The original looked for Linear4bit alone, on a model not loaded in 4 bits, and found nothing."""
    model = AutoModelForCausalLM.from_pretrained(neox_folder, quantization_config=BitsAndBytesConfig(**{kind: True}))
    assert type(next(iter(linear_layers(model).values()))).__name__ in ("Linear4bit", "Linear8bitLt")
    assert find_linear_modules(model) == NEOX


class OnlyHead(torch.nn.Module):
    """A model whose one linear layer is its head."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 4)

    def get_output_embeddings(self):
        return self.head


def test_nothing_found_is_an_error_that_says_why():
    with pytest.raises(UserError, match="OnlyHead has no linear layer .* besides its output head"):
        find_linear_modules(OnlyHead())


def test_targets_can_be_narrowed_and_a_wrong_name_lists_the_right_ones(neox_folder):
    model = AutoModelForCausalLM.from_pretrained(neox_folder)
    assert find_linear_modules(model, ["dense"]) == ["dense"]
    with pytest.raises(UserError, match=r"lora_targets c_attn: .* it has dense, dense_4h_to_h"):
        find_linear_modules(model, ["c_attn"])


def test_a_layer_named_like_the_head_is_refused():
    model = OnlyHead()
    model.block = torch.nn.ModuleDict({"head": torch.nn.Linear(4, 4)})
    with pytest.raises(UserError, match="The head head has the same short name"):
        find_linear_modules(model)
