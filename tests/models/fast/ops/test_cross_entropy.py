import pytest
import torch
import torch.nn.functional as F

from llm_qa.models.fast.ops import cross_entropy
from llm_qa.models.fast.ops.cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("chunk", [7, 64, 1024])
@pytest.mark.parametrize("trained_head", [False, True])
def test_loss_and_gradients_are_those_of_logits_in_one_piece(monkeypatch, chunk, trained_head):
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(100, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=trained_head)
    targets = torch.randint(0, 50, (100,), generator=generator)
    targets[::3] = -100
    got = linear_cross_entropy(hidden, weight, targets)
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=-100)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    inputs = [hidden, *([weight] if trained_head else [])]
    for a, b in zip(torch.autograd.grad(2 * got, inputs), torch.autograd.grad(2 * wanted, inputs), strict=True):
        assert (a - b).norm() < 1e-6 * b.norm()


def test_nothing_learned_is_a_loss_of_zero():
    hidden = torch.randn(5, 4, requires_grad=True)
    value = linear_cross_entropy(hidden, torch.randn(9, 4), torch.full((5,), -100))
    value.backward()
    assert value.item() == 0.0
    assert not hidden.grad.any()
