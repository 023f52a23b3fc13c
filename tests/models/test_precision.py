"""Precision from the recipe and the GPU's capability."""

import pytest
import torch

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.models.precision import check_fp8_units, resolve_precision

T4, A100, P100, ADA, CPU = (7, 5), (8, 0), (6, 0), (8, 9), None


@pytest.mark.parametrize(
    ("values", "capability", "weights", "compute", "autocast"),
    [
        ({"base_precision": "nf4"}, A100, torch.bfloat16, torch.bfloat16, "bf16"),
        ({"base_precision": "nf4"}, T4, torch.float16, torch.float16, "fp16"),
        ({"base_precision": "nf4"}, CPU, torch.float32, torch.float32, None),
        ({"base_precision": "16bit"}, A100, torch.bfloat16, torch.bfloat16, "bf16"),
        ({"base_precision": "16bit"}, T4, torch.float16, torch.float16, "fp16"),
        ({"base_precision": "16bit"}, P100, torch.float16, torch.float16, "fp16"),
        ({"base_precision": "16bit"}, CPU, torch.bfloat16, torch.bfloat16, "bf16"),
        ({"base_precision": "fp32", "method": "full"}, A100, torch.float32, torch.bfloat16, "bf16"),
        ({"base_precision": "fp32", "method": "full"}, T4, torch.float32, torch.float16, "fp16"),
        ({"base_precision": "fp32", "method": "full"}, CPU, torch.float32, torch.float32, None),
        ({"base_precision": "nf4", "compute_dtype": "fp16"}, A100, torch.float16, torch.float16, "fp16"),
    ],
)
def test_dtypes_follow_the_gpu(values, capability, weights, compute, autocast):
    precision = resolve_precision(make_recipe(values), capability)
    assert (precision.weights, precision.compute, precision.autocast) == (weights, compute, autocast)


@pytest.mark.parametrize(
    ("values", "capability", "sentence"),
    [
        ({"compute_dtype": "bf16"}, T4, "compute_dtype bf16 needs compute capability 8.0 and this is .* 7.5"),
        ({"base_precision": "bf16"}, T4, "set --base-precision to 16bit or fp16"),
        ({"base_precision": "nf4"}, P100, "nf4 needs compute capability 7.5"),
        ({"method": "full", "base_precision": "16bit"}, T4, "updates vanish in rounding: set --base-precision to fp32"),
        ({"compute_dtype": "fp16"}, CPU, "fp16 .* the CPU"),
    ],
)
def test_what_a_gpu_cannot_do_is_refused_with_the_flag(values, capability, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_precision(make_recipe(values), capability)


def test_the_bitsandbytes_config():
    config = resolve_precision(make_recipe({}), A100).quantization_config
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert resolve_precision(make_recipe({"base_precision": "16bit"}), A100).quantization_config is None


@pytest.mark.parametrize(
    ("values", "capability", "in_fp8"),
    [
        ({}, ADA, True),
        ({"compute_dtype": "fp8"}, ADA, True),
        ({"base_precision": "16bit"}, ADA, True),
        ({"base_precision": "fp8", "compute_dtype": "bf16"}, ADA, True),  # such weights know no other product
        ({}, A100, False),
        ({}, CPU, False),
        ({"compute_dtype": "bf16"}, ADA, False),
        ({"compute_dtype": "fp16"}, ADA, False),
        ({"fast": "off"}, ADA, False),
        ({"base_precision": "fp32"}, ADA, False),
        ({"base_precision": "bf16", "method": "full"}, ADA, False),
    ],
)
def test_frozen_weights_are_multiplied_in_fp8_where_there_are_units_for_it(values, capability, in_fp8):
    precision = resolve_precision(make_recipe(values), capability)
    assert precision.fp8_products == in_fp8
    assert ("products in fp8 with frozen weights and bf16" in precision.why) == in_fp8
    if in_fp8:
        assert (precision.compute, precision.autocast) == (torch.bfloat16, "bf16")


@pytest.mark.parametrize("capability", [A100, T4, CPU])
def test_fp8_is_refused_for_training_without_units_and_such_a_run_answers_anywhere(capability):
    recipe = make_recipe({"compute_dtype": "fp8"})
    with pytest.raises(
        UserError, match="compute_dtype fp8 needs a GPU of compute capability 8.9 .*--compute-dtype to a"
    ):
        check_fp8_units(recipe, capability)
    check_fp8_units(recipe, ADA)
    check_fp8_units(make_recipe({}), capability)
    plain = resolve_precision(make_recipe({}), capability)
    assert resolve_precision(recipe, capability).compute == plain.compute


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "full", "base_precision": "bf16"}, "method full has none"),
        ({"base_precision": "fp32"}, "base_precision fp32 asks for exact ones"),
        ({"fast": "off"}, "fast is off"),
    ],
)
def test_fp8_where_nothing_is_frozen_or_nothing_multiplies_so_is_refused(values, sentence):
    with pytest.raises(UserError, match=f"compute_dtype fp8 .*{sentence}"):
        make_recipe({"compute_dtype": "fp8", **values})
