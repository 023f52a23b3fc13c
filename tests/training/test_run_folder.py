"""What is saved at the end: read back from the disk by names that transformers changes, and by from_pretrained."""

import pytest
import torch
from architectures import small_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm_qa.training.run_folder import check_saved

FUSED = ("mixtral", "qwen3_moe", "exaone_moe", "gpt_oss", "granitemoehybrid", "qwen3_next")


@pytest.fixture(params=("gpt_neox", "gpt2", "llama", "gemma2", "falcon", *FUSED))
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(request.param), dtype=torch.float32)


def test_a_whole_model_is_found_saved_and_loads_with_the_same_weights(tmp_path, model):
    weights = model.state_dict()
    model.save_pretrained(tmp_path, state_dict=dict(weights))
    check_saved(model, weights, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_one_changed_number_or_a_missing_tensor_is_found(tmp_path, model):
    weights = model.state_dict()
    model.save_pretrained(tmp_path, state_dict=dict(weights))
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    name = next((name for name in stored if ".experts." in name), next(iter(stored)))
    save_file({key: tensor for key, tensor in stored.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(RuntimeError, match=f"does not hold what was trained: {name}"):
        check_saved(model, weights, tmp_path)
    changed = stored[name].clone()
    changed.view(-1)[-1] += 1
    save_file({**stored, name: changed}, path, {"format": "pt"})
    with pytest.raises(RuntimeError, match=f"does not hold what was trained: {name}"):
        check_saved(model, weights, tmp_path)
