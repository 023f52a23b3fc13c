"""The table of known models: parameter counts as published, on the meta device."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_qa.console import UserError
from llm_qa.models.registry import known_shape, model_config
from llm_qa.models.shapes import SHAPES


@pytest.mark.parametrize("model", SHAPES)
def test_parameter_counts(model):
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(model_config(model))
    assert sum(p.numel() for p in built.parameters()) == SHAPES[model].parameters


def test_parameter_counts_are_the_published_ones_but_for_the_largest_card():
    published = {"1.3b": 1_331_810_304, "3.8b": 3_809_974_272, "5.8b": 5_885_059_072, "12.8b": 12_898_631_680}
    ours = {size: SHAPES[f"EleutherAI/polyglot-ko-{size}"].parameters for size in published}
    assert {size: published[size] - ours[size] for size in published} == {
        "1.3b": 0,
        "3.8b": 0,
        "5.8b": 0,
        "12.8b": 5_027_840,
    }


def test_rotary_dimensions():
    assert model_config("EleutherAI/polyglot-ko-12.8b").rope_parameters["partial_rotary_factor"] == 0.5
    assert model_config("EleutherAI/polyglot-ko-5.8b").rope_parameters["partial_rotary_factor"] == 0.25


def test_a_local_checkpoint_is_read_and_an_unknown_one_is_one_sentence(neox_folder):
    assert model_config(str(neox_folder)).hidden_size == 64
    with pytest.raises(UserError, match="'nobody/nothing' is not in the project's table"):
        model_config("nobody/nothing")


def test_a_folder_with_a_known_shape_is_known(tmp_path, neox_folder):
    name = "EleutherAI/polyglot-ko-5.8b"
    model_config(name).save_pretrained(tmp_path)
    assert known_shape(str(tmp_path)) == known_shape(name) == SHAPES[name]
    for other in (str(neox_folder), "somebody/else", "embedded"):
        assert known_shape(other) is None
