"""ZeRO-3 gathers a decoder layer at once, and the fast path under it is the plain path's mathematics."""

import functools

import oracle
import pytest
from launching import LORA, losses, train, training, write_recipe
from safetensors.torch import load_file
from small_base import SHAPE
from test_matrix import difference

from llm_qa import files

pytestmark = pytest.mark.distributed
KINDS = ("lora_fp32", "nf4", "full")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """kind, fast -> the folder of a finished run under ZeRO-3 on two processes, trained once."""
    folder = tmp_path_factory.mktemp("zero3")

    @functools.cache
    def run(kind, fast):
        recipe = write_recipe(folder, kind, fast=fast)
        path = folder / f"{kind}-{fast}"
        train("zero3", recipe, path, script="tests/distributed/train_on_zero3.py")
        return path

    run.folder = folder
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_path_has_the_plain_path_s_losses_and_gradients(kind, runs):
    fast, plain = runs(kind, "auto"), runs(kind, "off")
    assert training(fast)["path"].startswith("fast path")
    assert training(plain)["path"].startswith("plain path")
    assert training(fast)["engine"]["zero_stage"] == 3
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-5)
    got, wanted = (load_file(run / "gradients.safetensors") for run in (fast, plain))
    assert got.keys() == wanted.keys()
    apart = {name: ((got[name] - wanted[name]).norm() / wanted[name].norm()).item() for name in wanted}
    assert max(apart.values()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_path_is_the_explicit_loop_s_mathematics(kind, runs):
    reference, weights = oracle.train(write_recipe(runs.folder, kind))
    run = runs(kind, "auto")
    assert losses(run) == pytest.approx(reference, rel=1e-5)
    largest, mean, unmatched = difference(run, weights)
    assert not unmatched
    assert largest < 5e-5
    assert mean < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_gathered_whole_and_one_ahead_and_nothing_stays(kind, runs):
    made = files.read_json(runs(kind, "off") / "engine.json")
    assert made["leaf_modules"] == ["GPTNeoXLayer"] * SHAPE["num_hidden_layers"]
    assert made["kept_whole"] == []
    d, ff = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    matrices, vectors = 4 * d * d + 2 * d * ff, 9 * d + ff  # four biases, two norms
    lora = 0 if kind == "full" else LORA["lora_r"] * (8 * d + 2 * ff)
    stored = matrices // 8 if kind == "nf4" else matrices  # eight 4-bit weights in an element of fp32
    assert made["prefetched"] == pytest.approx(stored + vectors + lora, rel=1e-3)


def test_the_optimizer_alone_can_be_kept_in_the_machine_s_memory(runs):
    reference, weights = oracle.train(write_recipe(runs.folder, "full"))
    run = runs.folder / "optimizer-offload"
    train("zero3_optimizer_offload", write_recipe(runs.folder, "full"), run)
    assert losses(run) == pytest.approx(reference, rel=1e-5)
    assert training(run)["strategy"] == "ZeRO-3 with CPU offload of the optimizer"
    assert difference(run, weights)[0] < 5e-5
