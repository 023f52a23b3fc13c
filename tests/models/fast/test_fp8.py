"""fp8 against the weights it was made from: one product, and two hundred steps of real training beside nf4."""

import json

import pytest
import torch
from command_line import ROOT, run_script

from llm_qa.models.fast.fp8 import Fp8Linear

ROUNDING = 0.04  # relative: both factors have 3 bits behind the point
LOSS = 0.01  # of the curve, in the mean of 20 steps


def test_a_product_and_its_gradient_are_within_fp8s_rounding():
    torch.manual_seed(0)
    plain, x = torch.nn.Linear(512, 320), torch.randn(64, 512, requires_grad=True)
    plain.requires_grad_(False)
    wanted, slope = plain(x), torch.randn(64, 320)
    (gradient,) = torch.autograd.grad(wanted, x, slope)
    got = Fp8Linear(plain)(x)
    assert 0 < (got - wanted).norm() < ROUNDING * wanted.norm()
    assert 0 < (torch.autograd.grad(got, x, slope)[0] - gradient).norm() < ROUNDING * gradient.norm()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_steps_follow_the_curve_of_unrounded_weights(tmp_path):
    curves = {}
    for base in ("fp32", "bf16", "nf4", "fp8"):
        given = ["scripts/recipes/tiny.yaml", "--run", tmp_path / base, "--base-precision", base, "--max-steps", "200"]
        given += ["--logging-steps", "1", "--save-steps", "200", "--lora-dropout", "0", "--compute-dtype", "fp32"]
        done = run_script(ROOT / "scripts" / "train.py", *given, timeout=1800)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / base / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        losses = torch.tensor([line["loss"] for line in lines if "loss" in line])
        assert len(losses) == 200
        curves[base] = losses.view(10, 20).mean(1)
        print(base, [round(value, 4) for value in curves[base].tolist()])
    assert curves["fp32"][-1] < 0.98 * curves["fp32"][0]  # it learns
    for base in ("bf16", "nf4", "fp8"):
        assert (curves[base] - curves["fp32"]).abs().max() < LOSS * curves["fp32"].max(), base
