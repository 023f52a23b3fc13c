"""What fits, on paper: refusals with the bytes needed and there, and the micro-batch that gathers least often."""

import pytest

from llm_qa.config.recipe import load_recipe
from llm_qa.console import UserError
from llm_qa.planning import dry_run
from llm_qa.planning.memory import Sizes
from llm_qa.training.memory_check import (
    Width,
    check_memory,
    free_host_bytes,
    gpu_bytes,
    host_bytes,
    largest_micro_batch,
    pass_bytes,
)
from llm_qa.training.strategy import Strategy, accumulation_steps

GIB = 2**30
H100, HOST = 80 * GIB, 251 * GIB
N = 12_893_603_840
FULL = Sizes(linear=12_739_379_200, other=N - 12_739_379_200, trained=N)
POLYGLOT = Width(layers=40, d_model=5120, vocabulary=30_080)


def full(**values):
    return load_recipe("scripts/recipes/full_12.8b.yaml", {"optim": "adamw_torch", **values})


def zero3(processes=2, **offload):
    return Strategy(processes, min(processes, 8), max(1, processes // 8), zero_stage=3, **offload)


def test_all_weights_need_two_large_gpus_and_an_8_bit_adam_or_four():
    with pytest.raises(UserError, match=r"96\.1 GiB on each GPU .* has 80\.0 GiB") as refused:
        check_memory(full(), FULL, zero3(), H100, HOST)
    assert "zero3.yaml on 4 such GPUs or" in str(refused.value)
    assert "zero3.yaml on 2 such GPUs with --optim adamw_8bit" in str(refused.value)
    assert "--method lora" in str(refused.value)
    check_memory(full(optim="adamw_8bit"), FULL, zero3(), H100, HOST)
    check_memory(full(), FULL, zero3(4), H100, HOST)
    check_memory(full(), FULL, zero3(), None, HOST)


def test_offload_counts_the_machine_s_memory():
    both, optimizer = zero3(offload_weights=True, offload_optimizer=True), zero3(offload_optimizer=True)
    assert host_bytes(full(), FULL, optimizer) == 18 * N
    assert host_bytes(full(), FULL, both) == 20 * N
    assert host_bytes(full(), FULL, zero3(16, offload_optimizer=True)) == 9 * N, "half of 16 processes are here"
    assert gpu_bytes(full(), FULL, optimizer) == N
    assert gpu_bytes(full(), FULL, both) == 0
    check_memory(full(), FULL, optimizer, H100, HOST)
    with pytest.raises(UserError, match=r"keep 240\.2 GiB .* of which 230\.0 GiB are free: use .*zero3_optimizer_off"):
        check_memory(full(), FULL, both, H100, 230 * GIB)
    with pytest.raises(UserError, match=r"keep 216\.1 GiB .* 128\.0 GiB are free: use machines with more memory"):
        check_memory(full(), FULL, optimizer, H100, 128 * GIB)


def test_a_lora_run_that_is_too_large_is_told_of_zero3_and_nf4():
    recipe = load_recipe("scripts/recipes/lora_12.8b.yaml")
    sizes = dry_run.sizes_of(dry_run.meta_model(recipe), recipe)
    assert sizes.linear + sizes.other == N
    with pytest.raises(
        UserError,
        match="24.4 GiB on each GPU with one process, .*: use .*zero3.yaml on 2 such GPUs or --base-precision nf4",
    ):
        check_memory(recipe, sizes, Strategy(), 16 * GIB, HOST)


@pytest.mark.parametrize(("processes", "size"), [(2, 16), (4, 8), (8, 4)])
def test_the_micro_batch_is_a_process_s_whole_share_where_it_fits(processes, size):
    recipe = full(optim="adamw_8bit", micro_batch_size=1)
    found = largest_micro_batch(recipe, FULL, POLYGLOT, zero3(processes), H100)
    assert found == size
    recipe = full(optim="adamw_8bit", micro_batch_size=found)
    assert found * processes * accumulation_steps(recipe, processes) == recipe.global_batch_size


def test_a_smaller_gpu_gets_a_smaller_micro_batch_and_never_less_than_the_recipe_s():
    recipe = full(optim="adamw_8bit", micro_batch_size=1)
    small = int((gpu_bytes(recipe, FULL, zero3()) + pass_bytes(POLYGLOT, 5 * 512)) / 0.92) + 1
    assert largest_micro_batch(recipe, FULL, POLYGLOT, zero3(), small) == 4
    assert largest_micro_batch(full(optim="adamw_8bit", micro_batch_size=8), FULL, POLYGLOT, zero3(), small) == 8


def test_the_machine_s_own_numbers_are_read():
    assert 2**20 < free_host_bytes() < 2**50
