"""Every recipe on every strategy, on two real processes: the same losses and weights, and what is saved is whole."""

import functools

import oracle
import pytest
import torch
from launching import (
    KINDS,
    LEAST_FALL,
    PROCESSES,
    attempt,
    fall,
    losses,
    train,
    training,
    validation_loss,
    write_recipe,
)
from safetensors.torch import load_file
from train_keeping_logits import probe

from llm_qa.config.recipe import load_recipe
from llm_qa.data.packing import IGNORED, collate_packs
from llm_qa.inference.generate import generate_answers
from llm_qa.inference.settings import GenerationSettings
from llm_qa.models.loading import load_run

pytestmark = pytest.mark.distributed
REFUSED = {("nf4", "zero3_offload"): "set --base-precision to 16bit"}
CELLS = [(kind, strategy) for kind in KINDS for strategy in PROCESSES if (kind, strategy) not in REFUSED]
ENGINE = {
    "single_gpu": (None, 0),  # the model itself
    "ddp": ("DistributedDataParallel", 0),
    "zero2": ("DeepSpeedEngine", 2),
    "zero3": ("DeepSpeedEngine", 3),
    "zero3_offload": ("DeepSpeedEngine", 3),
}
ROUNDING = {"lora_bf16": 2e-2}  # 16-bit products, and under DeepSpeed 16-bit LoRA weights beside fp32 masters
ROUNDED_LOSS = {"lora_bf16": 2e-4}  # a mean over thousands of tokens; one update changes it by 1.6e-3
EXACT = 1e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """kind, strategy -> the folder of a finished run, trained once; a name and changes of the recipe make another."""
    folder = tmp_path_factory.mktemp("matrix")

    @functools.cache
    def run(kind, strategy, name="", **changes):
        recipe = write_recipe(folder, kind, **changes)
        path = folder / f"{kind}-{strategy}{name}"
        train(strategy, recipe, path, script="tests/distributed/train_keeping_logits.py")
        return path

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def expected(runs):
    """kind -> (losses, weights) of the explicit loop."""
    return functools.cache(lambda kind: oracle.train(write_recipe(runs.folder, kind)))


def saved_weights(run):
    """Every tensor of a finished run's final folder, by its name in peft's or transformers' file."""
    folder = next(path for path in (run / "adapter", run / "model") if path.is_dir())
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt")]
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def difference(run, weights):
    """How saved weights differ from the oracle's: (most, in the mean, names that are not in both in one shape)."""
    saved = {
        name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight"): tensor
        for name, tensor in saved_weights(run).items()
    }
    saved = {name.replace("embed_out", "lm_head"): tensor for name, tensor in saved.items()}  # GPT-NeoX's head on disk
    unmatched = {name for name in {*saved, *weights} if name not in saved or name not in weights}
    unmatched |= {name for name in {*saved} & {*weights} if saved[name].shape != weights[name].shape}
    both = {*saved, *weights} - unmatched
    apart = torch.cat([(saved[name].float() - weights[name].float()).abs().flatten() for name in both])
    return apart.max().item(), apart.mean().item(), unmatched


def test_the_packs_are_uneven_enough_to_tell_a_mean_of_means(runs):
    """An engine that averages its ranks' or passes' means would be far from the oracle on this data."""
    recipe, model, tokenizer, packs = oracle.load(write_recipe(runs.folder, "lora_fp32"))
    losses, tokens = [], []
    for i in oracle.order_of(packs, recipe)[: recipe.global_batch_size]:
        batch = collate_packs([packs[i]], tokenizer.pad_token_id)
        tokens.append(int((batch["labels"] != IGNORED).sum()))
        with torch.no_grad():
            losses.append(model(**batch, use_cache=False).loss.item())
    right = sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
    assert max(tokens) > 1.1 * min(tokens)
    assert abs(sum(losses) / len(losses) / right - 1) > 10 * EXACT


@pytest.mark.parametrize(("kind", "strategy"), CELLS)
def test_every_strategy_is_the_same_mathematics(kind, strategy, runs, expected):
    run = runs(kind, strategy)
    engine, stage = ENGINE[strategy]
    inside = training(run)["engine"]
    assert inside["class"] == (engine or ("GPTNeoXForCausalLM" if kind == "full" else "PeftModelForCausalLM"))
    assert inside["zero_stage"] == stage
    assert inside["processes"] == PROCESSES[strategy]
    reference, weights = expected(kind)
    assert losses(run) == pytest.approx(reference, rel=ROUNDED_LOSS.get(kind, EXACT))
    largest, mean, unmatched = difference(run, weights)
    assert not unmatched
    assert sum(tensor.numel() for tensor in saved_weights(run).values()) == training(run)["trainable_parameters"]
    assert largest < (5e-5 if kind not in ROUNDING else 5e-3)
    assert mean < 1e-4


@pytest.mark.parametrize(("kind", "strategy"), CELLS)
def test_what_is_saved_is_whole_and_answers(kind, strategy, runs):
    run = runs(kind, strategy)
    model, tokenizer = load_run(run)
    live = torch.load(run / "live_logits.pt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "lora_bf16"):
        reloaded = model(**probe(), use_cache=False).logits.float()
    assert (reloaded - live).abs().max() < ROUNDING.get(kind, EXACT) * live.abs().max()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "lora_bf16"):
        scored = oracle.validation_loss(model, tokenizer, load_recipe(run / "recipe.yaml"))
    assert scored == pytest.approx(validation_loss(run), rel=ROUNDED_LOSS.get(kind, EXACT))
    answers = generate_answers(
        model, tokenizer, [("벽지가 들뜨는 이유는 무엇인가요?",)], GenerationSettings(max_new_tokens=8)
    )
    assert len(answers) == 1


@pytest.mark.parametrize(("kind", "strategy"), REFUSED)
def test_a_pair_that_cannot_work_is_refused(kind, strategy, runs):
    recipe = write_recipe(runs.folder, kind)
    printed, code = attempt(strategy, recipe, runs.folder / "refused")
    assert code != 0
    assert REFUSED[kind, strategy] in printed
    assert not (runs.folder / "refused").exists()


def test_eight_passes_of_one_are_one_of_eight(runs, expected):
    one = runs("nf4", "single_gpu", "-1x8", micro_batch_size=1)
    eight = runs("nf4", "single_gpu", "-8x1", micro_batch_size=8)
    reference, _ = expected("nf4")
    assert losses(one) == pytest.approx(reference, rel=EXACT)
    assert losses(eight) == pytest.approx(reference, rel=EXACT)


def test_a_whole_epoch_ends_alike_where_packs_do_not_divide(runs):
    alone = runs("nf4", "single_gpu", "-epoch", max_steps=-1, num_train_epochs=1, micro_batch_size=1)
    is_distributed = runs("nf4", "ddp", "-epoch", max_steps=-1, num_train_epochs=1, micro_batch_size=1)
    assert losses(is_distributed) == pytest.approx(losses(alone), rel=1e-4)
    assert training(is_distributed)["tokens"] == training(alone)["tokens"]
    assert validation_loss(is_distributed) == pytest.approx(validation_loss(alone), rel=1e-4)
    assert fall(alone) > LEAST_FALL


def test_two_processes_share_the_embedded_model(runs):
    """The base that needs no path: one process builds or finds it, both train on it, and the run carries a copy."""
    run = runs("nf4", "ddp", "-embedded", model="embedded", max_steps=1)
    assert training(run)["engine"]["processes"] == 2
    model, _ = load_run(run)
    live = torch.load(run / "live_logits.pt")
    with torch.no_grad():
        assert (model(**probe(), use_cache=False).logits - live).abs().max() < EXACT * live.abs().max()
