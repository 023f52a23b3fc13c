"""What fits, on paper: refusals with the bytes needed and there, and the micro-batch that gathers least often."""

from dataclasses import replace

import pytest

from llm_qa.config.recipe import load_recipe, recipe_flags
from llm_qa.console import UserError
from llm_qa.models.shapes import SHAPES
from llm_qa.planning import dry_run
from llm_qa.planning.footprint import usable_bytes
from llm_qa.planning.known_gpus import GPUS
from llm_qa.planning.memory import PROCESS_BYTES, Sizes
from llm_qa.planning.ways import RECIPES, STAGE, Job, all_plans, sizes_of
from llm_qa.training.memory_check import (
    Layers,
    check_memory,
    free_host_bytes,
    largest_micro_batch,
    least_bytes,
    needed_host_bytes,
    takes_plain_path,
)
from llm_qa.training.strategy import Strategy, accumulation_steps

GIB = 2**30
H100, HOST = 80 * GIB, 512 * GIB
N = 12_893_603_840
FULL = Sizes(linear=12_739_379_200, other=N - 12_739_379_200, trained=N)
POLYGLOT = Layers(number=40, d_model=5120, vocabulary=30_080)


def full(**values):
    return load_recipe("scripts/recipes/full_12.8b.yaml", {"optim": "adamw_torch", **values})


def zero3(processes=2, **offload):
    return Strategy(processes, min(processes, 8), max(1, processes // 8), zero_stage=3, **offload)


def check(recipe, strategy, gpu, host=HOST, layers=POLYGLOT, sizes=FULL, **more):
    check_memory(recipe, sizes, layers, strategy, gpu, host, **more)


def test_all_weights_need_two_large_gpus_and_an_8_bit_adam_or_four():
    with pytest.raises(UserError, match=r"99\.1 GiB on each GPU .* has 80\.0 GiB, of which 74\.6 GiB") as refused:
        check(full(), zero3(), H100)
    assert "zero3.yaml on 4 such GPUs or" in str(refused.value)
    assert "zero3.yaml on 2 such GPUs with --optim adamw_8bit" in str(refused.value)
    assert "--method lora" in str(refused.value)
    check(full(optim="adamw_8bit"), zero3(), H100)
    check(full(), zero3(4), H100)
    check(full(), zero3(), None)


def test_offload_counts_the_machine_s_memory():
    """18 or 20 bytes a weight, a process's libraries, and 2 bytes a weight of the model that is written at the end."""
    both, optimizer = zero3(offload_weights=True, offload_optimizer=True), zero3(offload_optimizer=True)
    assert needed_host_bytes(full(), FULL, optimizer) == (18 + 2) * N + 2 * PROCESS_BYTES
    assert needed_host_bytes(full(), FULL, both) == (20 + 2) * N + 2 * PROCESS_BYTES
    halves = needed_host_bytes(full(), FULL, zero3(16, offload_optimizer=True))
    assert halves == (9 + 2) * N + 8 * PROCESS_BYTES, "half of 16 processes are here"
    check(full(), optimizer, H100)
    lora = load_recipe("scripts/recipes/lora_12.8b.yaml")
    check(lora, Strategy(), H100, 2 * PROCESS_BYTES, sizes=sizes_of(SHAPES[lora.model], lora))
    with pytest.raises(UserError, match=r"of which 255\.0 GiB are free: use .*zero3_optimizer_off"):
        check(full(), both, H100, 255 * GIB)
    with pytest.raises(UserError, match=r" 128\.0 GiB are free: use machines with more memory"):
        check(full(), optimizer, H100, 128 * GIB)


def test_a_lora_run_that_is_too_large_is_told_of_zero3_and_nf4():
    recipe = load_recipe("scripts/recipes/lora_12.8b.yaml")
    sizes = dry_run.sizes_of(dry_run.meta_model(recipe), recipe)
    assert sizes.linear + sizes.other == N
    with pytest.raises(
        UserError,
        match="24.8 GiB on each GPU with one process, .*: use .*zero3.yaml on 4 such GPUs or --base-precision nf4",
    ):
        check(recipe, Strategy(), 16 * GIB, sizes=sizes)


def test_what_only_a_shorter_pass_or_recomputation_makes_fit_is_told_so():
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml", {"pack_length": 2048, "global_batch_size": 8})
    recipe = replace(recipe, micro_batch_size=8)
    sizes = sizes_of(SHAPES[recipe.model], recipe)
    short = next(gib for gib in range(7, 24) if usable_bytes(gib * GIB) > least(recipe, sizes, 2))
    with pytest.raises(UserError, match=r"use --micro-batch-size 2 \(or --auto-micro-batch, which finds it\)\.$"):
        check(recipe, Strategy(), short * GIB, sizes=sizes)
    check(recipe, Strategy(), short * GIB, sizes=sizes, auto=True)
    check(replace(recipe, micro_batch_size=2), Strategy(), short * GIB, sizes=sizes)
    with pytest.raises(UserError, match=r"use --recompute auto\.$"):
        check(replace(recipe, recompute="none"), Strategy(), 24 * GIB, sizes=sizes)
    check(recipe, Strategy(), 24 * GIB, sizes=sizes)


def least(recipe, sizes, micro):
    return least_bytes(recipe, sizes, POLYGLOT, Strategy(), micro)


def test_the_plain_path_counts_its_logits():
    recipe = load_recipe("scripts/recipes/qlora_12.8b_t4x2.yaml")
    sizes = sizes_of(SHAPES[recipe.model], recipe)
    plain = replace(POLYGLOT, plain=True)
    more = least_bytes(recipe, sizes, plain, Strategy(), 4) - least_bytes(recipe, sizes, POLYGLOT, Strategy(), 4)
    assert more > 10 * 4 * 512 * POLYGLOT.vocabulary


def test_a_path_is_plain_where_no_fast_one_can_be_taken():
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml")
    assert takes_plain_path(recipe, "gpt_neox", (7, 5), 0)
    assert takes_plain_path(replace(recipe, fast="off"), "gpt_neox", (9, 0), 0)
    assert not takes_plain_path(recipe, "gpt_neox", (9, 0), 3)
    assert not takes_plain_path(recipe, "llama", (9, 0), 2)
    assert takes_plain_path(recipe, "llama", (9, 0), 3)
    assert takes_plain_path(full(), "llama", (9, 0), 0)


def strategy_of(plan, gpus):
    number = 1 if plan.way.engine == "one" else gpus
    offload = {"offload_optimizer": bool(plan.way.offload), "offload_weights": plan.way.offload == "all"}
    return Strategy(number, number, zero_stage=STAGE[plan.way.engine], **offload)


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("model", ["polyglot-ko-1.3b", "polyglot-ko-5.8b", "polyglot-ko-12.8b"])
@pytest.mark.parametrize("gpu", ["T4", "RTX 4090", "A100", "H200"])
def test_what_the_plan_says_does_not_fit_is_refused_and_nothing_else(gpu, model, gpus):
    """Every way on GPUs of many sizes, by the flags of its command; what does not fit is refused at any micro-batch."""
    verdicts = set()
    shape = SHAPES[f"EleutherAI/{model}"]
    for gib in (1.2, 3, 7, 8, 16, 24, 40, 80, 141, 200):
        card = replace(GPUS[gpu], gib=gib)
        for plan in all_plans(Job(f"EleutherAI/{model}", card, gpus, 1, 476_560, 3)):
            flags = plan.command.partition('ARGS="')[2].rstrip('"').split()
            recipe = load_recipe(RECIPES / f"{plan.way.recipe}.yaml", recipe_flags(flags))
            plain = takes_plain_path(recipe, shape.model_type, card.capability, STAGE[plan.way.engine])
            layers = Layers(shape.layers, shape.d_model, shape.vocabulary, plain)
            how = (sizes_of(shape, recipe), layers, strategy_of(plan, gpus), int(gib * GIB), 2**50)
            verdicts.add(plan.fits)
            if plan.fits:
                check_memory(recipe, *how)
                check_memory(replace(recipe, micro_batch_size=recipe.global_batch_size), *how, auto=True)
                continue
            for micro in (1, 2, recipe.global_batch_size):
                with pytest.raises(UserError, match="of which"):
                    check_memory(replace(recipe, micro_batch_size=micro), *how, auto=True)
    assert verdicts == {True, False}


@pytest.mark.parametrize(("processes", "size"), [(2, 16), (4, 8), (8, 4)])
def test_the_micro_batch_is_a_process_s_whole_share_where_it_fits(processes, size):
    recipe = full(optim="adamw_8bit", micro_batch_size=1)
    found = largest_micro_batch(recipe, FULL, POLYGLOT, zero3(processes), H100)
    assert found == size
    recipe = full(optim="adamw_8bit", micro_batch_size=found)
    assert found * processes * accumulation_steps(recipe, processes) == recipe.global_batch_size


def test_a_smaller_gpu_gets_a_smaller_micro_batch_and_never_less_than_the_recipe_s():
    recipe = full(optim="adamw_8bit", micro_batch_size=1)
    needed = least_bytes(recipe, FULL, POLYGLOT, zero3(), 5)
    small = next(size for size in range(60 * GIB, 80 * GIB, GIB // 16) if usable_bytes(size) > needed)
    assert largest_micro_batch(recipe, FULL, POLYGLOT, zero3(), small) == 4
    assert largest_micro_batch(full(optim="adamw_8bit", micro_batch_size=8), FULL, POLYGLOT, zero3(), small) == 8


def test_no_pass_is_longer_than_those_that_were_measured():
    recipe = full(optim="adamw_8bit", micro_batch_size=1, global_batch_size=128)
    assert largest_micro_batch(recipe, FULL, POLYGLOT, zero3(), 200 * GIB) == 16


def test_the_machine_s_own_numbers_are_read():
    assert 2**20 < free_host_bytes() < 2**50
