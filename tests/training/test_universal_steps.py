"""After a universal checkpoint every optimizer state counts its own updates."""

from types import SimpleNamespace

import pytest
import torch

from llm_qa.training.universal_steps import SeparateSteps


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_tensor_that_deepspeed_shares_is_counted_once_an_update(fused):
    groups = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=fused)
    shared = torch.tensor(5.0, dtype=torch.float64)
    for parameter in groups:
        parameter.grad = torch.ones(4)
        optimizer.state[parameter] = {
            "step": shared,
            "exp_avg": torch.full((4,), 0.5),
            "exp_avg_sq": torch.full((4,), 0.5),
        }
    wrapper = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    SeparateSteps().on_train_begin(None, None, None, optimizer=wrapper)
    optimizer.step()
    assert [optimizer.state[parameter]["step"].item() for parameter in groups] == [6.0] * 3
    assert torch.equal(groups[0], groups[2])


def test_an_optimizer_that_counts_in_whole_numbers_is_left_alone():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    optimizer.state[parameter] = {"step": 3}
    SeparateSteps().on_train_begin(None, None, None, optimizer=optimizer)
    assert optimizer.state[parameter]["step"] == 3
