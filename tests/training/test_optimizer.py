"""Full training of bf16 weights follows fp32's path: how many weights move, where to, and the loss on the way."""

import pytest
import torch
from architectures import small_config
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from llm_qa.config.recipe import load_recipe, make_recipe
from llm_qa.console import UserError
from llm_qa.data.packing import PackedDataset, tokenize_records
from llm_qa.models.loading import save_tokenizer
from llm_qa.models.precision import resolve_precision
from llm_qa.training.checkpoint.resume import invalid_reasons
from llm_qa.training.optimizer import BETA2, check_optimizer, optimizer_defaults
from llm_qa.training.strategy import Strategy
from llm_qa.training.trainer import build_trainer, training_arguments

STEPS = 200
FULL = {
    **{"method": "full", "max_length": 256, "pack_length": 256, "recompute": "none", "max_steps": STEPS},
    **{"learning_rate": 1e-5, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no"},
    **{"adam_beta2": BETA2},
}


class Losses(TrainerCallback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.every = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.every.append(logs["loss"])


def prepare(neox_folder, records, folder, precision, **changes):
    """(trainer, its Losses) of full training in a base precision."""
    recipe = make_recipe({**FULL, "model": str(neox_folder), "base_precision": precision, **changes})
    resolved = resolve_precision(recipe, None)
    model = AutoModelForCausalLM.from_pretrained(neox_folder, dtype=resolved.weights)
    tokenizer = AutoTokenizer.from_pretrained(neox_folder)
    pairs, _ = tokenize_records(tokenizer, records, recipe.max_length)
    packs = PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed, recipe.global_batch_size)
    losses = Losses()
    arguments = training_arguments(recipe, resolved, Strategy(), folder)
    return build_trainer(model, tokenizer, arguments, packs, None, [losses]), losses


def flat(model):
    """Every weight in one fp32 vector."""
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def moved(start, end):
    """Share of the weights that are another bf16 number than before."""
    return (start.bfloat16() != end.bfloat16()).float().mean().item()


def test_bf16_weights_take_the_path_of_fp32_weights(neox_folder, records, tmp_path, capsys):
    """Plain AdamW in bf16 moves a twentieth of what fp32 moves here, in another direction, and learns a fifth."""
    runs = {}
    for precision in ("fp32", "bf16"):
        trainer, losses = prepare(neox_folder, records, tmp_path, precision)
        start = flat(trainer.model).clone()
        trainer.train()
        runs[precision] = start, flat(trainer.model), losses.every
        said = capsys.readouterr().out
        assert ("optimizer: AdamW with Kahan summation" in said) == (precision == "bf16")
    (start, end, curve), (bf16_start, bf16_end, bf16_curve) = runs["fp32"], runs["bf16"]
    assert len(curve) == STEPS
    assert curve[-1] < curve[0] - 0.5, "it learns"
    assert moved(start, end) > 0.5, "and moves most weights by more than bf16's spacing"
    assert moved(bf16_start, bf16_end) == pytest.approx(moved(start, end), rel=0.02)
    move, bf16_move = end - start, bf16_end - bf16_start
    assert torch.nn.functional.cosine_similarity(move, bf16_move, dim=0) > 0.98
    assert bf16_move.norm().item() == pytest.approx(move.norm().item(), rel=0.02)
    assert bf16_curve == pytest.approx(curve, rel=0.02)


@pytest.fixture(scope="module")
def mixtral_folder(tmp_path_factory, tokenizer):
    """A random Mixtral with its tokenizer: its experts are fused in memory and apart on disk."""
    folder = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(0)
    config = small_config("mixtral", len(tokenizer), initializer_range=0.1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.mark.parametrize("base", ["neox_folder", "gpt2_folder", "mixtral_folder"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_resumed_run_ends_with_the_same_bits(base, precision, request, records, tmp_path):
    """The compensation is in the checkpoint, and so are all weights, under whatever name and shape on disk."""
    folder = request.getfixturevalue(base)
    changes = {"max_steps": 8, "save_steps": 4, "save_strategy": "steps", "learning_rate": 1e-4}
    whole, _ = prepare(folder, records, tmp_path, precision, **changes)
    whole.train()
    half = tmp_path / "checkpoints" / "checkpoint-4"
    assert not invalid_reasons(half)
    state = torch.load(half / "optimizer.pt", weights_only=True)["state"]
    assert any("kahan_comp" in kept and kept["kahan_comp"].any() for kept in state.values()) == (precision == "bf16")
    resumed, _ = prepare(folder, records, tmp_path, precision, **changes)
    resumed.train(resume_from_checkpoint=str(half))
    assert torch.equal(flat(whole.model), flat(resumed.model))


def test_a_run_that_began_with_another_optimizer_is_refused(neox_folder, records, tmp_path, monkeypatch):
    changes = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps"}
    with monkeypatch.context() as patched:
        patched.setattr("llm_qa.training.trainer.choose_optimizer", lambda *_: None)
        prepare(neox_folder, records, tmp_path, "bf16", **changes)[0].train()
    trainer, _ = prepare(neox_folder, records, tmp_path, "bf16", **changes)
    with pytest.raises(UserError, match=r"was trained with an AdamW that rounds .* --resume never"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-1"))


def test_the_line_says_which_settings_bf16_cannot_follow(neox_folder, records, tmp_path, capsys):
    prepare(neox_folder, records, tmp_path, "bf16", adam_beta2=0.999, weight_decay=0.01)
    said = capsys.readouterr().out
    assert "adam_beta2 0.999, with which a second moment in bf16 cannot decrease (set --adam-beta2 0.99)" in said
    assert "weight_decay 0.01 has no effect" in said
    prepare(neox_folder, records, tmp_path, "bf16")
    assert "has no effect" not in (said := capsys.readouterr().out)
    assert "cannot decrease" not in said


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"])
def test_an_optimizer_that_would_lose_its_updates_is_refused_before_anything_is_read(optim):
    recipe = make_recipe({"method": "full", "base_precision": "bf16", "optim": optim})
    with pytest.raises(UserError, match=f"optim {optim} would round .* leave out --optim, set --base-precision to fp3"):
        check_optimizer(recipe, Strategy())
    check_optimizer(recipe, Strategy(2, 2, zero_stage=2))
    check_optimizer(make_recipe({"method": "full", "base_precision": "fp32", "optim": optim}), Strategy())
    check_optimizer(make_recipe({"method": "lora", "base_precision": "bf16", "optim": optim}), Strategy())


def test_every_strategy_gets_the_same_beta2():
    recipe = make_recipe({"method": "full", "base_precision": "16bit"})
    assert optimizer_defaults(recipe) == {"adam_beta2": BETA2}
    assert not optimizer_defaults(make_recipe({"method": "full", "base_precision": "fp32"}))
    assert not optimizer_defaults(make_recipe({"method": "lora", "base_precision": "bf16"}))


def test_the_12_8b_recipe_sets_nothing_that_bf16_cannot_follow():
    recipe = load_recipe("scripts/recipes/full_12.8b.yaml")
    assert recipe.training["adam_beta2"] == BETA2
    assert "weight_decay" not in recipe.training
