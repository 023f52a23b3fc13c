"""The kernel of few rows against its plain function, on a GPU or in Triton's interpreter, and its PTX emulated."""

import os
import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (PyTorch's CPU build comes without it)")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and not os.environ.get("TRITON_INTERPRET"):  # read when Triton is imported, which others do before
    pytest.skip("no GPU and no TRITON_INTERPRET=1 (make test-kernels)", allow_module_level=True)

import bitsandbytes  # noqa: E402
from bitsandbytes.functional import quantize_4bit  # noqa: E402

from llm_qa.models.fast.ops import few_rows, few_rows_kernels, fp8, frozen_linear  # noqa: E402

pytestmark = pytest.mark.interpreter
DEVICE = "cuda" if ON_GPU else "cpu"


def weight_of(kind: str, outputs: int, inputs: int) -> list[torch.Tensor]:
    """A random weight as products take it, its rows of very different sizes."""
    whole = torch.randn(outputs, inputs, device=DEVICE) * torch.logspace(-2, 1, outputs, device=DEVICE)[:, None]
    if kind == "fp8":
        scale = fp8.scale_of(whole.abs().amax(1, keepdim=True))
        return [(whole / scale).to(torch.float8_e4m3fn), scale]
    data, state = quantize_4bit(whole, compress_statistics=kind == "nf4 nested", quant_type="nf4")
    layer = torch.nn.Module()
    layer.weight = bitsandbytes.nn.Params4bit(data, quant_state=state, bnb_quantized=True)
    return frozen_linear.frozen_weight(layer, torch.float32)


@pytest.mark.parametrize("rank", [0, 3, 8])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 128, 256), (3, 64, 320), (8, 192, 1024)])
@pytest.mark.parametrize("kind", ["nf4", "nf4 nested", "fp8"])
def test_few_rows(monkeypatch, kind, rows, outputs, inputs, rank):
    torch.manual_seed(0)
    weight = weight_of(kind, outputs, inputs)
    x, bias = (torch.randn(*shape, device=DEVICE).bfloat16() for shape in ((rows, inputs), (outputs,)))
    d = torch.randn(rows, rank, device=DEVICE).bfloat16() if rank else None
    b = torch.randn(outputs, rank, device=DEVICE).bfloat16() if rank else None
    got = few_rows_kernels.few_rows(x, weight, bias, d, b)
    monkeypatch.setattr(torch.Tensor, "is_cuda", False)  # the plain function, on whatever device
    wanted = few_rows.linear(x, weight, bias, d, b)
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype == torch.bfloat16
    # nf4's values are rounded to bf16 before their scales are applied, and the interpreter rounds to zero
    assert (got.float() - wanted.float()).norm() < 8e-3 * wanted.float().norm()


def run_ptx(text: str, registers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the few PTX instructions that the kernel contains on arrays of 32-bit words."""
    state = {**registers, "%lanemask_lt": np.uint32(0xFF), "%lanemask_gt": np.uint32(0xFFFFFE00)}

    def value(name: str) -> np.ndarray:
        return state[name] if name in state else np.uint32(int(name, 0) & 0xFFFFFFFF)

    def prmt(a, b, selector):
        source = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        out = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint64)
        for place in range(4):
            nibble = (selector >> np.uint32(4 * place)) & np.uint32(15)
            byte = source >> (np.uint64(8) * (nibble & np.uint32(7)).astype(np.uint64)) & np.uint64(255)
            repeated = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            out |= np.where(nibble & np.uint32(8), repeated, byte) << np.uint64(8 * place)
        return out.astype(np.uint32)

    def lop3(a, b, c, table):
        bits = [(table >> np.uint32(n)) & np.uint32(1) for n in range(8)]
        out = np.uint32(0)
        for n in range(8):
            each = (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
            out = out | (each if bits[n] else np.uint32(0))
        return out

    def fma(a, b, c):  # of two bf16 in a word; the product with a power of two is exact, and c is -0
        low, high = (((part & np.uint32(0xFFFF)) << np.uint32(16)).view(np.float32) for part in (a, a >> np.uint32(16)))
        factor = np.array((b & np.uint32(0xFFFF)) << np.uint32(16)).view(np.float32)
        low, high = ((part * factor).view(np.uint32) >> np.uint32(16) for part in (low, high))
        return low | high << np.uint32(16)

    operations = {"mov": lambda a: a, "and": np.bitwise_and, "xor": np.bitwise_xor, "shr": np.right_shift}
    operations |= {"prmt": prmt, "lop3": lop3, "fma": fma}
    for line in re.sub(r"\.reg[^;]*;", "", text.strip(" {}\n")).split(";"):
        if line.strip():
            operation, arguments = line.strip().split(None, 1)
            target, *sources = (name.strip() for name in arguments.split(","))
            state[target] = operations[operation.split(".")[0]](*map(value, sources))
    return state


def bf16(words: np.ndarray) -> np.ndarray:
    """The two bf16 of each word, (n, 2)."""
    halves = np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], axis=1)
    return halves.view(np.float32)


def test_the_ptx_gives_the_values_of_every_pair_of_bytes():
    every = np.arange(65_536, dtype=np.uint32)
    state = run_ptx(few_rows_kernels.NF4_ASM.value, {"$4": every | every[::-1] << np.uint32(16)})
    values = torch.tensor(few_rows_kernels.NF4).bfloat16().float().numpy()
    for words, first, second in ((every, "$0", "$2"), (every[::-1], "$1", "$3")):
        pair = np.stack([words & np.uint32(255), words >> np.uint32(8)], axis=1)
        np.testing.assert_array_equal(bf16(state[first]), values[pair >> np.uint32(4)])
        np.testing.assert_array_equal(bf16(state[second]), values[pair & np.uint32(15)])


def test_the_ptx_gives_the_value_of_every_fp8_number():
    every = np.array([n for n in range(256) if n & 127 != 127], dtype=np.uint32)  # but for NaN
    one = np.uint32(0x38)  # 1.0
    state = run_ptx(few_rows_kernels.FP8_ASM.value, {"$2": every | one << np.uint32(8) | every << np.uint32(16)})
    wanted = torch.tensor(every.astype(np.uint8)).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(bf16(state["$0"])[:, 0], wanted)
    np.testing.assert_array_equal(bf16(state["$1"])[:, 0], wanted)
    assert (bf16(state["$0"])[:, 1] == 1).all()


def test_the_table_is_bitsandbytes_own():
    state = quantize_4bit(torch.randn(1, 64, device=DEVICE), quant_type="nf4")[1]
    torch.testing.assert_close(state.code.cpu(), torch.tensor(few_rows_kernels.NF4), rtol=0, atol=0)


@pytest.mark.parametrize("rank", [0, 3, 8])
@pytest.mark.parametrize(("rows", "width"), [(1, 320), (3, 2560)])  # in one chunk and in two
def test_both_norms_of_a_layer(monkeypatch, rows, width, rank):
    torch.manual_seed(0)
    x = (3 + torch.randn(rows, width, device=DEVICE)).bfloat16()
    first, second = ([torch.randn(width, device=DEVICE).bfloat16() for _ in range(2)] for _ in range(2))
    factors = [torch.randn(rank, width, device=DEVICE).bfloat16() if rank else None for _ in range(2)]
    got = few_rows_kernels.norms(x, first, second, 1e-5, *factors)
    monkeypatch.setattr(torch.Tensor, "is_cuda", False)
    wanted = few_rows.norms(x, first, second, 1e-5, *factors)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype == torch.bfloat16
            assert (one.float() - other.float()).norm() < 8e-3 * other.float().norm()
