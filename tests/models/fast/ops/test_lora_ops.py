import pytest
import torch

from llm_qa.models.fast.ops import lora

SEED = torch.tensor([123456789])


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_the_mask_drops_its_share_evenly_and_repeats_by_seed(probability):
    threshold = lora.dropout_threshold(probability)
    mask = lora.keep_mask(2000, 500, SEED, threshold)
    assert mask.float().mean().item() == pytest.approx(1 - probability, abs=2e-3)
    assert mask.float().mean(0).std().item() == pytest.approx((probability * (1 - probability) / 2000) ** 0.5, rel=0.2)
    assert torch.equal(mask, lora.keep_mask(2000, 500, SEED, threshold))
    other = lora.keep_mask(2000, 500, SEED + 1, threshold)
    both = (~mask & ~other).float().mean().item()
    assert both == pytest.approx(probability**2, rel=0.1)  # independent of another seed's
    halves = (~mask[:, :250] & ~mask[:, 250:]).float().mean().item()
    assert halves == pytest.approx(probability**2, rel=0.1)  # and of the half that shares its hash


def test_no_dropout_keeps_everything():
    assert lora.dropout_threshold(0.0) == 0
    assert lora.keep_scale(0) == 1.0
    x, a = torch.randn(6, 8), torch.randn(3, 8)
    assert torch.allclose(lora.shrink(x, a, SEED, 0, 2.0), 2 * x @ a.T)


def test_what_is_kept_is_scaled_to_the_same_mean():
    threshold = lora.dropout_threshold(0.05)
    x, a = torch.ones(4000, 64), torch.ones(1, 64)
    mean = lora.shrink(x, a, SEED, threshold, lora.keep_scale(threshold)).mean().item()
    assert mean == pytest.approx(64, rel=1e-3)


def test_the_three_products_share_one_mask():
    threshold = lora.dropout_threshold(0.4)
    x, a, d = torch.randn(9, 10).double(), torch.randn(2, 10).double(), torch.randn(9, 2).double()
    mask = lora.keep_mask(9, 10, SEED, threshold)
    assert torch.allclose(lora.shrink(x, a, SEED, threshold, 3.0), 3 * (x * mask) @ a.T)
    assert torch.allclose(lora.weight_grad(d, x, SEED, threshold, 3.0, a), 3 * d.T @ (x * mask), atol=1e-5)
    assert torch.allclose(lora.expand(d, a, SEED, threshold, 3.0, x.clone()), x + mask * (3 * d @ a))
