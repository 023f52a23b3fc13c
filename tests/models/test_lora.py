"""LoRA on NeoX and KoGPT2, plain and in nf4: what trains, and that it is the right thing."""

import pytest
import torch

from llm_qa.config.recipe import make_recipe
from llm_qa.models.loading import load_base
from llm_qa.models.lora import add_lora, linear_parameters, parameter_counts, trainable_report
from llm_qa.models.precision import resolve_precision


def with_lora(folder, **values):
    recipe = make_recipe({"lora_dropout": 0.0, **values})
    return add_lora(load_base(folder, resolve_precision(recipe, None)), recipe)


@pytest.mark.parametrize("precision", ["nf4", "fp32"])
@pytest.mark.parametrize("architecture", ["neox_folder", "gpt2_folder"])
def test_only_lora_trains_and_the_head_has_none(request, architecture, precision):
    model = with_lora(request.getfixturevalue(architecture), base_precision=precision)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed_out" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_parameter_counts_do_not_depend_on_quantisation(neox_folder):
    plain, quantised = with_lora(neox_folder, base_precision="fp32"), with_lora(neox_folder, base_precision="nf4")
    assert parameter_counts(plain) == parameter_counts(quantised)
    assert linear_parameters(plain.base_model.model) == linear_parameters(quantised.base_model.model)
    # 2 layers x (q,k,v + dense + two mlp) of rank 8
    assert parameter_counts(plain)[1] == 2 * 8 * ((64 + 192) + (64 + 64) + (64 + 128) * 2)


def test_conv1d_lora_is_not_transposed(gpt2_folder):
    """fan_in_fan_out: merging LoRA into KoGPT2's weights gives the logits of the unmerged model."""
    model = with_lora(gpt2_folder, base_precision="fp32").eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ids = torch.arange(1, 9, device=model.device)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        after = model.merge_and_unload()(input_ids=ids).logits
    assert not torch.allclose(before, base, atol=1e-3)
    assert torch.allclose(before, after, atol=1e-5)


def test_a_validation_pass_does_not_change_nf4_gradients(neox_folder):
    """bitsandbytes would repack CPU weights at the first eval pass and lose their backward (see load_base)."""
    model = with_lora(neox_folder, base_precision="nf4")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ids = torch.arange(1, 30, device=model.device)[None]
    batch = {"input_ids": ids, "labels": ids}

    def gradients():
        model.train()
        model.zero_grad()
        model(**batch).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(**batch)
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(g.abs().sum() > 0 for g in before.values())


def test_the_report_names_modules(neox_folder):
    text = trainable_report(with_lora(neox_folder))
    for part in ("parameters:", "trained (", "query_key_value: ", "dense_4h_to_h: ", " in 4 tensors"):
        assert part in text


def test_loras_random_start_follows_the_recipes_seed(neox_folder):
    def start(seed):
        torch.rand(seed + 1)  # whatever happened before
        return next(p for name, p in with_lora(neox_folder, seed=seed).named_parameters() if "lora_A" in name)

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
