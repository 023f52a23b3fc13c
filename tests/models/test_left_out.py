"""What quantisation and LoRA do not reach is said, with its share; names that peft takes for experts."""

import pytest
import torch
from architectures import small_config
from transformers import AutoModelForCausalLM

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.models.left_out import left_out_report
from llm_qa.models.loading import load_base
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision


def saved(tmp_path, name):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small_config(name), dtype=torch.float32).save_pretrained(tmp_path)
    return tmp_path


def lines_of(folder, **values):
    recipe = make_recipe(values)
    precision = resolve_precision(recipe, None)
    model = load_base(folder, precision)
    return left_out_report(add_lora(model, recipe) if recipe.method == "lora" else model, recipe, precision)


def expert_weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return sum(p.numel() for name, p in model.named_parameters() if ".experts." in name or "mlp.gate.weight" in name)


def test_experts_that_stay_unquantised_and_unadapted_are_said(tmp_path):
    folder = saved(tmp_path, "mixtral")
    quantised, adapted = lines_of(folder)
    total = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    experts = expert_weights(folder)
    share = f"{experts:,} of the base's {total:,} weights ({experts / total:.1%}), in MixtralExperts, MixtralTopKRouter"
    assert quantised == f"not quantised to nf4, but kept in fp32: {share}"
    assert adapted == f"not adapted by LoRA: {share}"
    assert lines_of(folder, base_precision="fp32") == [adapted]
    assert lines_of(folder, base_precision="fp32", method="full") == []


def test_linear_layers_of_an_own_class_are_adapted_but_not_quantised(tmp_path):
    (line,) = lines_of(saved(tmp_path, "falcon"))
    assert line.startswith("not quantised to nf4, but kept in fp32: ")
    assert line.endswith("in FalconLinear")


@pytest.mark.parametrize("architecture", ["neox_folder", "gpt2_folder"])
@pytest.mark.parametrize("precision", ["nf4", "fp8", "fp32"])
def test_nothing_is_left_out_of_the_models_that_the_project_is_for(request, architecture, precision):
    if (architecture, precision) == ("gpt2_folder", "fp8"):
        pytest.skip("fp8 is for nn.Linear, and GPT-2 has Conv1D")
    assert lines_of(request.getfixturevalue(architecture), base_precision=precision) == []


def test_names_that_peft_takes_for_experts_are_left_out_and_said(tmp_path):
    """With lora_dropout peft's wrapper of parameters would end in a ValueError; without, it would adapt the experts."""
    folder = saved(tmp_path, "exaone_moe")
    adapted = lines_of(folder, base_precision="fp32")
    assert adapted[0].startswith("not adapted by LoRA: ")
    assert adapted[0].endswith("in ExaoneMoeExperts, Linear, ExaoneMoeTopkRouter")
    with pytest.raises(UserError, match="gate_proj, up_proj: in .* peft applies these names to experts"):
        lines_of(folder, base_precision="fp32", lora_targets=["q_proj", "gate_proj", "up_proj"])


def test_layers_left_out_by_name_are_not_said(tmp_path):
    assert lines_of(saved(tmp_path, "mixtral"), base_precision="fp32", lora_targets=["q_proj"]) == []
