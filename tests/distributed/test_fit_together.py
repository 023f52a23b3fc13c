"""Out of memory on one rank of two: none hangs, and the same command goes on with half the micro-batch on both."""

import pytest
from launching import command, kill, losses, start, train, training, write_recipe

from llm_qa import files

pytestmark = pytest.mark.distributed

SMALL_GPU = """
import os, sys, torch
from llm_qa.training.trainer import PackTrainer
step = PackTrainer.training_step
def training_step(self, model, inputs, *rest, **more):
    if os.environ["RANK"] == "1" and len(inputs["input_ids"]) > 1 and self.state.global_step >= 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 is full.")
    return step(self, model, inputs, *rest, **more)
PackTrainer.training_step = training_step
sys.path.insert(0, "scripts")
import train
train.run_script(train.main, speaks=train.first_to_say)
"""


def test_one_rank_that_is_out_of_memory_halves_the_micro_batch_of_both(tmp_path):
    small, run, log = tmp_path / "small_gpu.py", tmp_path / "run", tmp_path / "first.txt"
    small.write_text(SMALL_GPU)
    recipe = write_recipe(tmp_path, "lora_fp32", global_batch_size=4, micro_batch_size=2, max_steps=6)
    again = {"script": str(small)}

    launched = start(command("ddp", recipe, run, "--fit", **again), log)
    try:
        assert launched.wait(timeout=120) != 0
    finally:
        kill(launched)
    printed = log.read_text(encoding="utf-8")
    assert "micro_batch_size 1 from now on, 4 an update as before: the same command goes on" in printed
    assert files.read_json(run / "fit.json")["micro_batch_size"] == 1

    printed = train("ddp", recipe, run, "--fit", **again)
    assert f"going on from {run}/checkpoints/checkpoint-2" in printed
    assert "1 a pass, 2 passes a process" in printed
    assert training(run)["finished"] is True

    train("ddp", recipe, tmp_path / "large")
    assert losses(run) == pytest.approx(losses(tmp_path / "large"), rel=1e-5)
