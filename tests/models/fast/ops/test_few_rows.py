"""Products with few rows, in plain PyTorch, against the same with a weight that was converted before."""

import pytest
import torch

from llm_qa.models.fast.ops import few_rows, fp8, frozen_linear

SHAPE = 96, 320


@pytest.mark.parametrize("rank", [0, 4])
def test_the_plain_function_is_the_product_with_the_whole_weight(rank):
    torch.manual_seed(0)
    whole, x, bias = torch.randn(SHAPE), torch.randn(3, SHAPE[1]), torch.randn(SHAPE[0])
    weight = list(fp8.quantize_rows(whole))
    d, b = (torch.randn(3, rank), torch.randn(SHAPE[0], rank)) if rank else (None, None)
    wanted = x @ (weight[0].float() * weight[1]).T + bias + (d @ b.T if rank else 0)
    torch.testing.assert_close(few_rows.linear(x, weight, bias, d, b), wanted)
    apart = frozen_linear.forward(x, weight, SHAPE[0]) + bias + (d @ b.T if rank else 0) - wanted
    assert 0 < apart.norm() < 0.05 * wanted.norm()  # there x is rounded to fp8 too


def test_it_is_for_few_rows_of_bf16_and_stored_weights_on_a_gpu(monkeypatch):
    weight = list(fp8.quantize_rows(torch.randn(SHAPE)))
    assert not few_rows.supports(1, torch.bfloat16, weight, 128, 320)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert few_rows.supports(1, torch.bfloat16, weight, 128, 320)
    assert few_rows.supports(8, torch.bfloat16, [torch.zeros(1, dtype=torch.uint8)], 128, 320)
    assert not few_rows.supports(9, torch.bfloat16, weight, 128, 320)
    assert not few_rows.supports(1, torch.float16, weight, 128, 320)
    assert not few_rows.supports(1, torch.bfloat16, weight, *SHAPE)
    assert not few_rows.supports(1, torch.bfloat16, [torch.zeros(128, 320).bfloat16()], 128, 320)
