"""Out of memory on one rank of two: none hangs, and the same command goes on with half the micro-batch on both."""

import pytest
from launching import attempt, losses, train, training, write_recipe

from llm_qa import files

pytestmark = pytest.mark.distributed

SMALL_GPU = {"script": "tests/distributed/train_on_a_small_gpu.py"}


def test_one_rank_that_is_out_of_memory_halves_the_micro_batch_of_both(tmp_path):
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, "lora_fp32", global_batch_size=4, micro_batch_size=2, max_steps=6)

    printed, code = attempt("ddp", recipe, run, "--auto-micro-batch", **SMALL_GPU)
    assert code != 0
    assert "micro_batch_size 1 from now on, global_batch_size 4 as before: the same command goes on" in printed
    assert files.read_json(run / "micro_batch.json")["micro_batch_size"] == 1

    printed = train("ddp", recipe, run, "--auto-micro-batch", **SMALL_GPU)
    assert f"going on from {run}/checkpoints/checkpoint-2" in printed
    assert "(1 per forward pass, 2 gradient accumulation steps)" in printed
    assert training(run)["finished"] is True

    train("ddp", recipe, tmp_path / "large")
    assert losses(run) == pytest.approx(losses(tmp_path / "large"), rel=1e-5)
