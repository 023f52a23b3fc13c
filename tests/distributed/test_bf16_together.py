"""Full training of bf16 weights on two processes takes fp32's path: Kahan summation for DDP, masters for ZeRO-3."""

from pathlib import Path

import launching
import pytest
import torch
from launching import losses, train, write_recipe
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed
LONG = {
    **{"max_steps": 200, "learning_rate": 1e-5, "weight_decay": 0, "adam_beta2": 0.99, "eval_strategy": "no"},
    **{"global_batch_size": 2, "micro_batch_size": 1, "save_steps": 200},
    **{"max_length": 128, "pack_length": 128},  # bf16 is slow on most CPUs
}


def flat(folder):
    """Every saved weight in one fp32 vector, by name."""
    weights = load_file(folder / "model.safetensors")
    return torch.cat([weights[name].float().flatten() for name in sorted(weights)])


@pytest.fixture(scope="module")
def in_fp32(tmp_path_factory):
    """A run of fp32 weights in one process."""
    folder = tmp_path_factory.mktemp("fp32")
    train("single_gpu", write_recipe(folder, "full", **LONG), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("strategy", "told"),
    [("ddp", "optimizer: AdamW with Kahan summation"), ("zero3", "with fp32 masters of 16-bit weights")],
)
def test_bf16_weights_take_the_path_of_fp32_weights(strategy, told, in_fp32, tmp_path):
    run = tmp_path / "run"
    printed = train(strategy, write_recipe(tmp_path, "full", **LONG, base_precision="bf16"), run)
    assert told in printed
    start = flat(Path(launching.RECIPE["model"]))
    rounded = start.bfloat16().float()  # the base is fp32: what bf16 takes from it at the start is no move
    end, expected_end = flat(run / "model"), flat(in_fp32 / "model")
    move, expected = end - rounded, expected_end - start
    moved = (end != rounded).float().mean().item()
    should_move = (expected_end.bfloat16() != rounded).float().mean().item()
    assert should_move > 0.5
    assert moved == pytest.approx(should_move, rel=0.02)
    assert torch.nn.functional.cosine_similarity(move, expected, dim=0) > 0.98
    assert move.norm().item() == pytest.approx(expected.norm().item(), rel=0.02)
    assert losses(run) == pytest.approx(losses(in_fp32), rel=0.01)
