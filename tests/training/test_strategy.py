"""What accelerate launch decided, and the pairs of recipe and strategy that are refused before anything is read."""

import json

import pytest
import torch

from llm_qa.config.recipe import load_recipe, make_recipe
from llm_qa.console import UserError
from llm_qa.models.precision import resolve_precision
from llm_qa.training.strategy import (
    Strategy,
    accumulation_steps,
    check_strategy,
    compile_locks,
    fit_precision,
    micro_batch_size,
    read_strategy,
)

ZERO3 = Strategy(2, 2, 1, zero_stage=3)
OFFLOAD = Strategy(2, 2, 1, zero_stage=3, offload_weights=True, offload_optimizer=True)


def deepspeed(path, **more):
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path), **more}


def test_what_the_shipped_configs_are_read_as():
    assert read_strategy({}) == Strategy()
    assert read_strategy({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}) == Strategy(16, 8, 2)
    two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert str(read_strategy(two)) == "DDP, 2 processes"
    assert str(read_strategy(deepspeed("ds_configs/zero2.json", **two))) == "ZeRO-2, 2 processes"
    assert read_strategy(deepspeed("ds_configs/zero3.json", **two)) == ZERO3
    assert read_strategy(deepspeed("ds_configs/zero3_offload.json", **two)) == OFFLOAD
    optimizer_alone = read_strategy(deepspeed("ds_configs/zero3_optimizer_offload.json", **two))
    assert optimizer_alone == Strategy(2, 2, 1, zero_stage=3, offload_optimizer=True)
    assert OFFLOAD.name == "ZeRO-3 with CPU offload"
    assert optimizer_alone.name == "ZeRO-3 with CPU offload of the optimizer"


def test_an_engine_that_this_project_does_not_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"asks for FSDP.*zero3\.yaml"):
        read_strategy({"ACCELERATE_USE_FSDP": "true"})
    with pytest.raises(UserError, match="without a deepspeed_config_file"):
        read_strategy({"ACCELERATE_USE_DEEPSPEED": "true"})
    with pytest.raises(UserError, match=r"nowhere\.json .* cannot be read"):
        read_strategy(deepspeed(tmp_path / "nowhere.json"))
    for text, told in (("not json", "cannot be read"), ("[]", "cannot be read"), ("{}", "stage 0")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=told):
            read_strategy(deepspeed(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    with pytest.raises(UserError, match="stage 1: this project runs stages 2 and 3"):
        read_strategy(deepspeed(tmp_path / "x.json"))


@pytest.mark.parametrize("stage", [2, 3])
def test_fp8_weights_are_not_for_deepspeed(stage):
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml", {"base_precision": "fp8"})
    with pytest.raises(UserError, match=f"fp8 with ZeRO-{stage}.*accelerate_configs/ddp.yaml, or set --base-precision"):
        check_strategy(recipe, Strategy(2, 2, 1, zero_stage=stage), None)
    check_strategy(recipe, Strategy(2, 2, 1), None)


def test_products_in_fp8_by_name_are_not_for_weights_that_are_shared_out():
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml", {"compute_dtype": "fp8"})
    with pytest.raises(UserError, match="compute_dtype fp8 with ZeRO-3.*set --compute-dtype to auto"):
        check_strategy(recipe, Strategy(2, 2, 1, zero_stage=3), None)
    check_strategy(recipe, Strategy(2, 2, 1, zero_stage=2), None)


def test_4_bit_weights_cannot_be_offloaded():
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml", {"optim": "adamw_torch"})
    with pytest.raises(UserError, match="base_precision nf4 with ZeRO-3 with CPU offload.*--base-precision to 16bit"):
        check_strategy(recipe, OFFLOAD, None)
    check_strategy(recipe, ZERO3, None)


def test_an_8_bit_optimizer_cannot_be_offloaded():
    with pytest.raises(UserError, match=r"optim paged_adamw_8bit with .*set --optim to adamw_torch"):
        check_strategy(load_recipe("scripts/recipes/full_1.3b.yaml"), OFFLOAD, None)
    check_strategy(load_recipe("scripts/recipes/full_1.3b.yaml", {"optim": "adamw_torch"}), OFFLOAD, None)


def test_more_processes_than_gpus_are_refused():
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml")
    with pytest.raises(UserError, match="2 processes were started on a machine with 1 GPU: set --num_processes 1 "):
        check_strategy(recipe, Strategy(2, 2), 1)
    check_strategy(recipe, Strategy(2, 2), 2)


def test_the_global_batch_is_shared_out_or_refused():
    recipe = make_recipe({"global_batch_size": 8, "micro_batch_size": 4})
    assert [(micro_batch_size(recipe, n), accumulation_steps(recipe, n)) for n in (1, 2, 4, 8)] == [
        (4, 2),
        (4, 1),
        (2, 1),
        (1, 1),
    ]
    with pytest.raises(UserError, match="global_batch_size 8 .* x 16 processes: set --global-batch-size to .* of 16"):
        check_strategy(recipe, Strategy(16, 16), None)
    with pytest.raises(UserError, match="3 processes"):
        accumulation_steps(recipe, 3)


def test_zero_keeps_one_dtype_and_says_so(capsys):
    recipe = load_recipe("scripts/recipes/full_1.3b.yaml")
    plain = resolve_precision(recipe, (9, 0))
    assert fit_precision(plain, Strategy()) == plain
    assert fit_precision(plain, ZERO3).weights == torch.bfloat16
    assert "weights are kept in bf16, with fp32 master weights" in capsys.readouterr().out
    nf4 = fit_precision(resolve_precision(load_recipe("scripts/recipes/qlora_12.8b.yaml"), (9, 0)), ZERO3)
    assert nf4.quantization_config.bnb_4bit_quant_storage == nf4.weights == nf4.trains_in == torch.bfloat16
    t4 = fit_precision(resolve_precision(load_recipe("scripts/recipes/qlora_12.8b_t4x2.yaml"), (7, 5)), ZERO3)
    assert t4.storage == torch.float16
    assert not capsys.readouterr().out


def test_operations_that_are_waited_for_while_they_are_compiled_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert compile_locks() == []
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    (tmp_path / "py311_cpu" / "deepspeed_shm_comm").mkdir(parents=True)
    assert compile_locks() == [lock]
