"""fp8 against the weights it was made from: one product, and two hundred steps of real training beside nf4."""

import json
from pathlib import Path

import pytest
import torch
from command_line import ROOT, run_script
from transformers import TrainerCallback

from llm_qa.config.recipe import load_recipe
from llm_qa.data.packing import PackedDataset, tokenize_records
from llm_qa.data.preparation import prepared_folder
from llm_qa.data.splits import open_split
from llm_qa.models.embedded import embedded_model
from llm_qa.models.fast.model import FastNeoX
from llm_qa.models.fast.ops.fp8 import Fp8Linear
from llm_qa.models.loading import load_base, load_tokenizer
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.training.strategy import Strategy
from llm_qa.training.trainer import build_trainer, training_arguments

ROUNDING = 0.04  # relative: both factors have 3 bits behind the point
LOSS = 0.01  # of the curve, in the mean of 20 steps
SAME_LOSS = 0.001  # the same, of products in fp8 beside bf16 on one nf4 base
FURTHER_APART = pytest.mark.xfail(strict=True, reason="0.6%, since the embedded model is a pretrained one")
CHATBOT = ROOT.parent / "shared" / "data" / "chatbot_qa.csv"


def test_a_product_and_its_gradient_are_within_fp8s_rounding():
    torch.manual_seed(0)
    plain, x = torch.nn.Linear(512, 320), torch.randn(64, 512, requires_grad=True)
    plain.requires_grad_(False)
    wanted, grad = plain(x), torch.randn(64, 320)
    (gradient,) = torch.autograd.grad(wanted, x, grad)
    got = Fp8Linear(plain)(x)
    assert 0 < (got - wanted).norm() < ROUNDING * wanted.norm()
    assert 0 < (torch.autograd.grad(got, x, grad)[0] - gradient).norm() < ROUNDING * gradient.norm()


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


class Losses(TrainerCallback):
    """The loss of every update."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs["loss"]] if "loss" in logs else []


def fast_curve(model_source: Path, train_records, folder: Path, *, fp8: bool) -> torch.Tensor:
    """Means of 20 updates' losses: tiny.yaml with the fast path's reference arithmetic on the CPU, (10,)."""
    changes = {"compute_dtype": "bf16", "max_steps": 200, "logging_steps": 1, "save_strategy": "no"}
    recipe = load_recipe("scripts/recipes/tiny.yaml", changes)
    precision, tokenizer = resolve_precision(recipe, None), load_tokenizer(model_source)
    model = add_lora(load_base(model_source, precision), recipe)
    pairs, _ = tokenize_records(tokenizer, train_records, recipe.max_length)
    packs = PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed, recipe.global_batch_size)
    sizes = packs.capacity, packs.max_label_tokens
    fast = FastNeoX(model.get_base_model(), precision.compute, *sizes, compiled=False)
    fast.prepare(len(fast.model.gpt_neox.layers) if fp8 else 0, fp8=fp8, dequantized=True)
    fast.install()
    arguments, losses = training_arguments(recipe, precision, Strategy(), folder), Losses()
    build_trainer(model, tokenizer, arguments, packs, None, [losses]).train()
    return torch.tensor(losses.values).view(10, 20).mean(1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("data", [pytest.param("bundled", marks=FURTHER_APART), "chatbot"])
def test_two_hundred_updates_learn_the_same_in_fp8_as_in_bf16(tmp_path, data):
    if data == "chatbot" and not CHATBOT.exists():
        pytest.skip("no ../shared/data/chatbot_qa.csv beside the project")
    folder = prepared_folder([str(CHATBOT)] if data == "chatbot" else None)
    train_records = open_split(folder, "train")
    source = embedded_model()
    bf16, fp8 = (fast_curve(source, train_records, tmp_path, fp8=fp8) for fp8 in (False, True))
    apart = ((fp8 - bf16).abs() / bf16).max().item()
    print(f"{data}: bf16 {bf16.tolist()}, fp8 {fp8.tolist()}, at most {apart:.3%} apart")
    assert bf16[-1] < 0.98 * bf16[0]  # it learns
    assert 0 < apart < SAME_LOSS
