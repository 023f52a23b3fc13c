"""A model that also reads pictures: LoRA, the context length and the loss are of its text tower alone."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma3Config

from llm_qa.config.recipe import Recipe
from llm_qa.inference.generate import context_length
from llm_qa.models.linear_modules import linear_layers, text_tower
from llm_qa.models.lora import add_lora

TEXT = {
    **{"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "sliding_window": 16},
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.fixture
def gemma3():
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=TEXT, vision_config={**VISION, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def test_the_linear_layers_are_those_of_the_text_tower(gemma3, neox_folder):
    assert type(gemma3).__name__ == "Gemma3ForConditionalGeneration"
    layers = linear_layers(gemma3)
    assert len(layers) == 4 * 7
    assert all(name.startswith("model.language_model.layers.") for name in layers)
    alone = AutoModelForCausalLM.from_pretrained(neox_folder)
    assert text_tower(alone) is alone


def test_lora_trains_the_text_tower_alone_and_its_adapter_reopens(gemma3, tmp_path):
    base = {name: tensor.clone() for name, tensor in gemma3.state_dict().items()}
    model = add_lora(gemma3, Recipe(model="gemma3", method="lora", lora_dropout=0.0))
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapted) == 4 * 7
    assert not [name for name in adapted if "vision" in name]
    ids = torch.arange(1, 21)[None]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            parameter.data -= parameter.grad
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_config(gemma3.config, dtype=torch.float32)
    again.load_state_dict(base)
    again = PeftModel.from_pretrained(again, tmp_path).eval()
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        assert torch.equal(logits, again(input_ids=ids).logits)
        with model.disable_adapter():
            assert not torch.equal(logits, model(input_ids=ids).logits)


def test_the_context_length_is_the_text_towers(gemma3):
    assert context_length(gemma3.config) == 96
