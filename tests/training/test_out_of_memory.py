"""Out of memory: a sentence with what helps; --auto-micro-batch halves the micro-batch, the updates stay the same."""

import pytest
import torch
import yaml
from command_line import run_script

from llm_qa import files
from llm_qa.config.recipe import make_recipe
from llm_qa.console import Failed
from llm_qa.training.out_of_memory import (
    going_on,
    memory_for_loading,
    micro_batch_file,
    out_of_memory,
    smaller,
    with_stored_micro_batch,
)
from llm_qa.training.strategy import Strategy, accumulation_steps

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.9 GiB of which 1.2 is free."


@pytest.mark.parametrize(
    ("whole", "micro", "processes", "half"), [(8, 8, 1, 4), (8, 8, 2, 2), (12, 3, 1, 1), (6, 6, 1, 3), (4, 1, 1, None)]
)
def test_half_the_micro_batch_keeps_the_update(whole, micro, processes, half):
    recipe = make_recipe({"global_batch_size": whole, "micro_batch_size": micro})
    assert smaller(recipe, processes) == half
    if half:
        found = make_recipe({"global_batch_size": whole, "micro_batch_size": half})
        assert half * processes * accumulation_steps(found, processes) == whole


@pytest.mark.parametrize(("found", "taken"), [(2, 2), (16, 16), (4, 4), (0, 4), (33, 4), ("8", 4)])
def test_the_micro_batch_that_was_found_is_taken_up_again_smaller_or_larger(found, taken, tmp_path):
    recipe = make_recipe({"global_batch_size": 32, "micro_batch_size": 4})
    files.write_json(micro_batch_file(tmp_path), {"micro_batch_size": found})
    assert with_stored_micro_batch(recipe, tmp_path).micro_batch_size == taken


def test_without_fit_the_sentence_has_the_memory_and_three_flags(tmp_path):
    recipe = make_recipe({"global_batch_size": 8, "micro_batch_size": 4, "recompute": "none"})
    with pytest.raises(Failed) as failed:
        out_of_memory(torch.OutOfMemoryError(CUDA), recipe, tmp_path, Strategy(), fit=False)
    sentence = str(failed.value)
    assert "tried to allocate 2.00 gib" in sentence
    assert "GiB were in use at most" in sentence
    for flag in ("--micro-batch-size 2 (or --auto-micro-batch", "--recompute all", "--pack-length 1024"):
        assert flag in sentence
    assert not list(tmp_path.iterdir())


def test_where_nothing_is_left_to_halve_fit_says_what_else_helps(tmp_path):
    with pytest.raises(Failed, match="--pack-length"):
        out_of_memory(torch.OutOfMemoryError(CUDA), make_recipe({}), tmp_path, Strategy(), fit=True)


@pytest.mark.parametrize(
    ("values", "helps"),
    [
        ({"base_precision": "nf4"}, "a smaller --model, a GPU that nothing else uses"),
        ({"base_precision": "16bit"}, "--base-precision nf4, accelerate_configs/zero3.yaml on more GPUs, a smaller"),
        ({"method": "full", "base_precision": "16bit"}, "--method lora --base-precision nf4, accelerate_configs/zero3"),
    ],
)
def test_a_model_that_does_not_fit_is_told_what_helps_and_no_micro_batch(values, helps):
    told = "^The model does not fit. Out of memory: .*tried to allocate 2.00 gib"
    with pytest.raises(Failed, match=told) as failed, memory_for_loading(make_recipe(values)):
        raise torch.OutOfMemoryError(CUDA)
    assert f"in this order: {helps}" in str(failed.value)
    assert "--micro-batch-size" not in str(failed.value)


LARGE_MODEL = """
import runpy, sys, torch, transformers
def from_pretrained(*arguments, **keywords):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")
transformers.AutoModelForCausalLM.from_pretrained = from_pretrained
sys.path.insert(0, "scripts")
runpy.run_path("scripts/train.py", run_name="__main__")
"""


def test_a_model_that_does_not_fit_ends_the_script_with_one_sentence_even_with_fit(neox_folder, tmp_path):
    recipe, large = tmp_path / "recipe.yaml", tmp_path / "large_model.py"
    values = {"model": str(neox_folder), "base_precision": "fp32", "max_length": 256, "pack_length": 256}
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    large.write_text(LARGE_MODEL)
    done = run_script(large, recipe, "--run", tmp_path / "run", "--auto-micro-batch")
    assert done.returncode == 1
    assert done.stderr.count("error: The model does not fit. Out of memory: ") == 1
    assert "--base-precision nf4, accelerate_configs/zero3.yaml on more GPUs, a smaller --model." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "micro_batch.json").exists()


def test_going_on_never_sets_its_own_run_aside():
    assert going_on(["python", "x", "--resume", "never", "--auto-micro-batch"]) == [
        "python",
        "x",
        "--resume",
        "auto",
        "--auto-micro-batch",
    ]
    assert going_on(["python", "--resume=never"]) == ["python", "--resume=auto"]
    assert going_on(["python", "never"]) == ["python", "never"]


SMALL_GPU = """
import runpy, sys, torch
from llm_qa.training.trainer import PackTrainer
step = PackTrainer.training_step
def training_step(self, model, inputs, *rest, **more):
    if len(inputs["input_ids"]) > 1 and self.state.global_step >= 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")
    return step(self, model, inputs, *rest, **more)
PackTrainer.training_step = training_step
sys.path.insert(0, "scripts")
runpy.run_path("scripts/train.py", run_name="__main__")
"""


def test_fit_goes_on_from_the_checkpoint_with_what_fits_and_keeps_it(neox_folder, tmp_path):
    values = {"model": str(neox_folder), "base_precision": "fp32", "max_length": 256, "pack_length": 256}
    values |= {
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "recompute": "none",
        "lora_dropout": 0,
        "learning_rate": 1e-3,
    }
    values |= {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "eval_strategy": "no"}
    recipe, small, run = tmp_path / "recipe.yaml", tmp_path / "small_gpu.py", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    small.write_text(SMALL_GPU)
    command = [small, recipe, "--run", run, "--resume", "never"]

    refused = run_script(*command)
    assert refused.returncode == 1
    assert refused.stderr.count("error: Out of memory") == 1
    assert "--micro-batch-size 2 (or --auto-micro-batch" in refused.stderr
    assert "Traceback" not in refused.stderr

    done = run_script(*command, "--auto-micro-batch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("starting again") == 2  # 4, then 2, then 1
    assert files.read_json(run / "micro_batch.json")["micro_batch_size"] == 1
    assert (
        "4 sequences of 256 tokens per update (1 per forward pass, 4 gradient accumulation steps) on one process,"
        in done.stdout
    )
    assert "micro_batch_size 2 instead of 4: what fits this GPU" in done.stdout
    assert f"going on from {run}/checkpoints/checkpoint-2" in done.stdout

    plain = run_script("scripts/train.py", recipe, "--run", tmp_path / "large")
    assert plain.returncode == 0, plain.stderr
    losses = [[line["loss"] for line in files.read_jsonl(r / "log.jsonl")] for r in (run, tmp_path / "large")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
