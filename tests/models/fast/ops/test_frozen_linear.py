import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from llm_qa.models.fast.ops import fp8, frozen_linear

SHAPE = 96, 320


def nf4(dtype=torch.float32, nested=True):
    """A random weight in bitsandbytes' nf4 as products take it, and what bitsandbytes quantised."""
    data, state = quantize_4bit(torch.randn(SHAPE, dtype=dtype), compress_statistics=nested, quant_type="nf4")
    layer = torch.nn.Module()
    layer.weight = bitsandbytes.nn.Params4bit(data, quant_state=state, bnb_quantized=True)
    return frozen_linear.frozen_weight(layer, dtype), (data, state)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_dequantised_to_bitsandbytes_last_bit(nested, dtype):
    weight, (data, state) = nf4(dtype, nested)
    assert len(weight) == (6 if nested else 3)
    assert torch.equal(frozen_linear.dequantize(weight, SHAPE, dtype), dequantize_4bit(data, state))


@pytest.mark.parametrize("nested", [True, False])
def test_nf4_in_fp8_is_its_rows_and_columns_rounded(nested):
    torch.manual_seed(0)
    weight, _ = nf4(nested=nested)
    whole = frozen_linear.dequantize(weight, SHAPE, torch.float32)
    scaled = frozen_linear.with_fp8_scales(weight, SHAPE)
    for transposed, side in ((False, whole), (True, whole.T)):
        rounded, scale = frozen_linear.nf4_to_fp8(scaled, SHAPE, transposed)
        assert rounded.is_contiguous()
        assert rounded.shape == side.shape
        # the largest of a row, which is taken of 16 bits, fills the range: nothing overflows to NaN
        assert (rounded.float().abs().amax(1) == fp8.LARGEST).all()
        assert (rounded.float() * scale - side).norm() < 0.03 * side.norm()


@pytest.mark.parametrize("base", ["nf4", "16bit"])
def test_products_in_fp8_hold_beside_a_channel_of_activations_100_times_the_others(base):
    """A scale a row is fine enough: what the other channels give is as exact as without the outlier."""
    torch.manual_seed(0)
    weight, _ = nf4()
    whole = frozen_linear.dequantize(weight, SHAPE, torch.float32)
    weight = [whole] if base == "16bit" else frozen_linear.with_fp8_scales(weight, SHAPE)
    dequantized = frozen_linear.cache_dequantized(weight, SHAPE, torch.float32)
    assert [value.dtype for value in dequantized[::2]] == [torch.float8_e4m3fn] * 2
    for multiply, sides, width in (
        (frozen_linear.forward, (SHAPE[1], SHAPE[0]), whole.T),
        (frozen_linear.backward, SHAPE, whole),
    ):
        calm = torch.randn(40, sides[0])
        loud = calm.clone()
        loud[:, 7] *= 100
        for x in (calm, loud):
            got, wanted = multiply(x, dequantized, sides[1]), x @ width
            assert 0 < (got - wanted).norm() < 0.05 * wanted.norm()
            if base == "nf4":
                assert torch.equal(multiply(x, weight, sides[1]), got)  # rounded once or in each product: the same
        back, scale = fp8.quantize_rows(loud)
        others = torch.arange(sides[0]) != 7
        apart = (back.float() * scale - loud)[:, others]
        assert apart.norm() < 0.03 * loud[:, others].norm()


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
    grad = torch.randn_like(y)
    got, plain = torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(wanted, x, grad)[0]
    assert (got - plain).norm() < 0.05 * plain.norm()
    assert rounded.weight.numel() == layer.weight.numel()
    assert not rounded.weight.requires_grad
