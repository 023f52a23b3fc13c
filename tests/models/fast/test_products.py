import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from llm_qa.models.fast import fp8, products


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_dequantised_to_bitsandbytes_last_bit(nested, dtype):
    data, state = quantize_4bit(torch.randn(96, 320, dtype=dtype), compress_statistics=nested, quant_type="nf4")
    layer = torch.nn.Module()
    layer.weight = bitsandbytes.nn.Params4bit(data, quant_state=state, bnb_quantized=True)
    weight = products.frozen_weight(layer, dtype)
    assert len(weight) == (6 if nested else 3)
    assert torch.equal(products.dequantize(weight, (96, 320), dtype), dequantize_4bit(data, state))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_fp8_rows_fill_the_range_and_err_by_a_16th_at_most(scale):
    x = torch.randn(50, 128) * scale
    rounded, scales = fp8.quantize_rows(x)
    assert rounded.float().abs().amax(1).eq(fp8.LARGEST).all()
    back = rounded.float() * scales
    large = x.abs() > x.abs().amax(1, keepdim=True) / 1000  # below lie e4m3's subnormal numbers
    assert ((back - x).abs() / x.abs())[large].max() <= 1 / 16 + 1e-6


def test_fp8_zero_rows_stay_zero():
    rounded, scales = fp8.quantize_rows(torch.zeros(2, 16))
    assert not (rounded.float() * scales).any()


def test_an_fp8_layer_is_near_the_layer_that_it_was_made_from():
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 192)
    rounded = fp8.Fp8Linear(layer)
    x = torch.randn(3, 40, 256, requires_grad=True)
    y, wanted = rounded(x), layer(x)
    assert (y - wanted).norm() < 0.05 * wanted.norm()
    slope = torch.randn_like(y)
    got, plain = torch.autograd.grad(y, x, slope)[0], torch.autograd.grad(wanted, x, slope)[0]
    assert (got - plain).norm() < 0.05 * plain.norm()
    assert rounded.weight.numel() == layer.weight.numel()
    assert not rounded.weight.requires_grad
