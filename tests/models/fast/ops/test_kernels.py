"""Each Triton kernel against its plain PyTorch function: on a GPU, or in Triton's interpreter (make test-kernels)."""

import inspect
import os

import bitsandbytes
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (PyTorch's CPU build comes without it)")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and not os.environ.get("TRITON_INTERPRET"):  # read when Triton is imported, which others do before
    pytest.skip("no GPU and no TRITON_INTERPRET=1 (make test-kernels)", allow_module_level=True)

from bitsandbytes.functional import quantize_4bit  # noqa: E402

from llm_qa.models.fast.ops import (  # noqa: E402
    attention,
    attention_kernels,
    cross_entropy,
    cross_entropy_kernels,
    fp8,
    frozen_linear,
    lora,
    lora_attention,
    lora_kernels,
    lora_layer,
    lora_layer_kernels,
    lora_mlp,
)

pytestmark = pytest.mark.interpreter
DEVICE = "cuda" if ON_GPU else "cpu"
TOKENS, WIDTH, RANK = 70, 272, 8
SIZES = [(TOKENS, WIDTH), (600, 1040)]  # in the second a sum is split among programs
THRESHOLDS = [0, lora.dropout_threshold(0.3)]


@pytest.fixture
def reference(monkeypatch):
    """The plain functions, on whatever device."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", False)


@pytest.fixture
def noise():
    torch.manual_seed(0)
    return lambda *shape: torch.randn(*shape, device=DEVICE)


def near(got, wanted, bound=1e-5):
    assert (got.double() - wanted.double()).norm() <= bound * wanted.double().norm()


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_products_of_low_rank(noise, reference, threshold, tokens, width):
    seed = torch.tensor([3987654321], device=DEVICE)
    x, a, b, d = noise(tokens, width), noise(RANK, width), noise(width, RANK), noise(tokens, RANK)
    near(lora_kernels.shrink(x, b.T, seed, threshold, 2.0), lora.shrink(x, b.T, seed, threshold, 2.0))
    near(lora_kernels.shrink(x, a, seed, threshold, 2.0), lora.shrink(x, a, seed, threshold, 2.0))
    near(lora_kernels.weight_grad(d, x, seed, threshold, 2.0, a), lora.weight_grad(d, x, seed, threshold, 2.0, a))
    across = lora_kernels.weight_grad(d, x, seed, threshold, 2.0, b.T).T
    assert across.is_contiguous()
    near(across.T, lora.weight_grad(d, x, seed, threshold, 2.0, a))
    onto = x.clone(), x.clone()
    near(lora_kernels.expand(d, b.T, seed, threshold, 2.0, onto[0]), lora.expand(d, b.T, seed, threshold, 2.0, onto[1]))


@pytest.mark.parametrize(("rows", "words"), [(5, 500), (70, 30080)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_cross_entropy_and_its_slope(noise, reference, rows, words, dtype):
    logits = (3 * noise(rows, words)).to(dtype)
    targets = torch.randint(0, words, (rows,), device=DEVICE)
    targets[::3] = -100
    wanted, wanted_slope = cross_entropy.cross_entropy(logits.clone(), targets)
    got, grad = cross_entropy_kernels.cross_entropy(logits, targets)
    assert not grad[::3].any()
    near(got, wanted)
    near(grad, wanted_slope, 1e-5 if dtype == torch.float32 else 1e-2)  # Triton's interpreter rounds to zero


def test_sums_of_the_larger_size_are_split():
    tokens, width = SIZES[1]
    rows, columns, *_ = inspect.signature(lora_kernels.shrink).parameters["shape"].default
    assert lora_kernels.parts_for(-(-tokens // rows), width // (4 * columns)) > 1
    rows, columns, *_ = inspect.signature(lora_layer_kernels.gelu_backward).parameters["shape"].default
    assert lora_kernels.parts_for(-(-width // 2 // columns), tokens // (4 * rows), lora_kernels.MORE_PROGRAMS) > 1


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_gelu_and_the_layer_s_sum(noise, reference, threshold, tokens, width):
    seed, scale = torch.tensor([77], device=DEVICE), 0.5
    h, d, b, bias = noise(tokens, width), noise(tokens, RANK), noise(width, RANK), noise(width)
    a, keep = noise(RANK, width), lora.keep_scale(threshold)
    near(lora_layer_kernels.gelu(h, d, b, bias, scale), lora_mlp.gelu(h, (d, b), bias, scale))
    du, dd = noise(tokens, width), noise(tokens, RANK)
    got = lora_layer_kernels.gelu_backward(du.clone(), dd, a, h, d, b, bias, seed, threshold, keep, scale)
    wanted = lora_mlp.gelu_backward(du.clone(), dd, a, h, (d, b), bias, seed, threshold, scale)
    for one, other in zip(got, wanted, strict=True):
        near(one, other)
    first, second, other_b = noise(tokens, width), noise(tokens, width), noise(width, RANK)
    got = lora_layer_kernels.residual(h, first, d, b, second, dd, other_b, bias, scale)
    near(got, lora_layer.residual(h, first, (d, b), second, (dd, other_b), bias, scale))


@pytest.mark.parametrize("heads", [1, 4])
def test_rotation_and_back(noise, reference, heads):
    width, rotated = 64, 32
    angles = noise(TOKENS, rotated // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    packed, d, b = noise(TOKENS, 3 * heads * width), noise(TOKENS, RANK), noise(3 * heads * width, RANK)
    bias = noise(3 * heads * width)
    got = lora_layer_kernels.rotate(packed, d, b, bias, cos, sin, heads, 2.0)
    near(got, lora_attention.rotate(packed, (d, b), bias, (cos, sin), heads, 2.0))
    grad = torch.randn_like(packed)
    wanted = lora_attention.apply_rotary_backward(grad.clone(), cos, sin, heads)
    near(lora_layer_kernels.apply_rotary_backward(grad.clone(), cos, sin, heads), wanted)


@pytest.mark.parametrize(("heads", "width"), [(2, 16), (2, 80), (1, 256)])  # not a power of two; with smaller tiles
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_attention_inside_documents(noise, reference, heads, width, dtype, bound):
    positions = torch.cat([torch.arange(length, device=DEVICE) for length in (70, 1, 1, 33, 96, 5)])
    starts, ends = attention.document_bounds(positions)
    packed, grad = noise(len(positions), 3 * heads * width), noise(len(positions), heads * width)
    attended, sums = attention.attend(packed, starts, ends, heads)
    wanted = attention.attend_backward(grad, packed, attended, sums, starts, ends, heads)
    packed, grad = packed.to(dtype), grad.to(dtype)
    got = attention_kernels.attend(packed, starts, heads)
    near(got[0], attended, bound)
    near(got[1], sums, bound)
    near(attention_kernels.attend_backward(grad, packed, *got, starts, ends, heads), wanted, bound)


def nf4(noise, shape, nested):
    """The tensors of a random weight in bitsandbytes' nf4."""
    layer = torch.nn.Module()
    data, state = quantize_4bit(noise(*shape), compress_statistics=nested, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(data, quant_state=state, bnb_quantized=True)
    return frozen_linear.frozen_weight(layer, torch.float32)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(96, 320), (70, 192)])  # whole tiles and their edges
def test_4_bit_weights_to_16_bits_and_to_fp8_in_both_layouts(noise, reference, nested, shape):
    weight = nf4(noise, shape, nested)
    second = frozen_linear.second_scales(weight)
    wanted = frozen_linear.dequantize(weight, shape, torch.float32)
    got = torch.full(shape, torch.nan, device=DEVICE)
    near(lora_kernels.dequantize_nf4(*weight[:3], *second, got), wanted, 1e-6)
    scaled = frozen_linear.with_fp8_scales(weight, shape)
    for transposed in (False, True):
        wanted, scale = frozen_linear.nf4_to_fp8(scaled, shape, transposed)
        got = torch.full(wanted.shape, torch.nan, device=DEVICE).to(torch.float8_e4m3fn)
        lora_kernels.nf4_to_fp8(*weight[:3], *second, scale, got, transposed)
        near_fp8(got, wanted)


def test_rows_to_fp8(noise, reference):
    for rows, width in ((5, 320), (3, 1000)):
        x = noise(rows, width) * torch.logspace(-3, 3, rows, device=DEVICE)[:, None]
        x[:, 7] *= 100
        wanted, wanted_scale = fp8.quantize_rows(x)
        got, scale = lora_kernels.rows_to_fp8(x)
        near(scale, wanted_scale, 1e-6)
        near_fp8(got, wanted)


def near_fp8(got, wanted):
    """Equal, but for a step of e4m3 where a number lies between two of them to within fp32's rounding."""
    got, wanted = got.float(), wanted.float()
    if not ON_GPU:  # Triton 3.7's interpreter rounds ties up, and what it rounds up to a power of 2 it halves
        carried = wanted.frexp().mantissa.abs() == 0.5
        got = torch.where(carried, wanted, got)
    assert ((got != wanted).float().mean() < 1e-3) or not ON_GPU
    assert ((got - wanted).abs() <= wanted.abs() / 8 + 2**-9).all()
