"""--dry-run: every recipe at its true shapes on the meta device."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llm_qa.config.recipe import load_recipe, make_recipe
from llm_qa.console import UserError
from llm_qa.data.records import QARecord
from llm_qa.models.shapes import SHAPES
from llm_qa.planning import dry_run as planning_dry_run
from llm_qa.planning.dry_run import check_context, check_fit, check_hardware, count_packs, dry_run, widest_pass
from llm_qa.training.strategy import Strategy

RECIPES = sorted(Path("scripts/recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_dry_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_QA_DATA", str(tmp_path))
    recipe = load_recipe(path)
    text = dry_run(recipe, None, Strategy())
    assert "updates an epoch:" in text
    assert "no weights were read" in text
    if recipe.model in SHAPES:
        assert f"{SHAPES[recipe.model].parameters:,}" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_carries_its_own_launch_command(path):
    header = "".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    command = re.search(r"accelerate launch --config_file (\S+) .*?scripts/train\.py (\S+)", header)
    assert Path(command[1]).is_file()
    assert Path(command[2]) == path


def test_the_12b_adapter_has_the_parameters_that_arithmetic_gives(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_QA_DATA", str(tmp_path))
    text = dry_run(load_recipe("scripts/recipes/qlora_12.8b.yaml"), None, Strategy())
    d, ff, layers, rank = 5120, 20480, 40, 8
    expected = layers * rank * ((d + 3 * d) + (d + d) + (d + ff) + (ff + d))
    assert f"{expected:,} trained" in text


def test_a_large_model_without_a_gpu_is_refused_and_a_small_one_is_not():
    with pytest.raises(UserError, match=r"EleutherAI/polyglot-ko-12\.8b has 12\.9 billion .* needs a CUDA GPU"):
        check_hardware(load_recipe("scripts/recipes/qlora_12.8b.yaml"), None)
    check_hardware(load_recipe("scripts/recipes/qlora_12.8b.yaml"), (8, 0))
    check_hardware(load_recipe("scripts/recipes/tiny.yaml"), None)
    check_hardware(load_recipe("scripts/recipes/full_kogpt2.yaml"), None)


def test_a_length_beyond_the_models_context_is_refused_from_its_config(gpt2_folder, neox_folder):
    for model in (gpt2_folder, neox_folder):
        check_context(make_recipe({"model": str(model), "max_length": 512, "pack_length": 2048}))
        with pytest.raises(
            UserError, match=r"--max-length 513 is longer than the context of .*, 512 tokens: set it to 512"
        ):
            check_context(make_recipe({"model": str(model), "max_length": 513, "pack_length": 2048}))
    with pytest.raises(UserError, match="the context of embedded, 1024 tokens"):
        dry_run(make_recipe({"max_length": 2048}), None, Strategy())
    with pytest.raises(UserError, match="the context of EleutherAI/polyglot-ko-1.3b, 2048 tokens"):
        check_context(make_recipe({"model": "EleutherAI/polyglot-ko-1.3b", "max_length": 4096, "pack_length": 4096}))


ZERO3 = Strategy(2, 2, 1, zero_stage=3)


def test_a_model_too_large_for_its_gpus_is_refused_from_its_shapes_alone(monkeypatch):
    monkeypatch.setattr(planning_dry_run, "gpu_total_bytes", lambda: 80 * 2**30)
    monkeypatch.setattr(planning_dry_run, "free_host_bytes", lambda: 128 * 2**30)
    with pytest.raises(UserError, match="on each GPU with ZeRO-3, 2 processes, .*--optim adamw_8bit"):
        check_fit(load_recipe("scripts/recipes/full_12.8b.yaml"), ZERO3)
    check_fit(load_recipe("scripts/recipes/full_12.8b_zero3.yaml"), ZERO3)
    check_fit(load_recipe("scripts/recipes/tiny.yaml"), Strategy())


def test_a_machine_too_small_for_what_is_offloaded_is_refused(monkeypatch):
    monkeypatch.setattr(planning_dry_run, "free_host_bytes", lambda: 64 * 2**30)
    offload = Strategy(2, 2, 1, zero_stage=3, offload_optimizer=True)
    with pytest.raises(UserError, match=r"244\.2 GiB in this machine's memory, of which 64\.0 GiB are free"):
        check_fit(load_recipe("scripts/recipes/full_12.8b.yaml"), offload)


def test_fit_takes_the_widest_pass_under_zero3_alone(monkeypatch, capsys):
    recipe = load_recipe("scripts/recipes/lora_12.8b.yaml")
    assert widest_pass(recipe, ZERO3) is recipe, "no GPU here"
    monkeypatch.setattr(planning_dry_run, "gpu_total_bytes", lambda: 80 * 2**30)
    assert widest_pass(recipe, Strategy()) is recipe
    wide = widest_pass(recipe, ZERO3)
    assert (wide.micro_batch_size, wide.global_batch_size) == (16, recipe.global_batch_size)
    assert "micro_batch_size 16 instead of 4" in capsys.readouterr().out


def test_the_peak_is_told_where_its_formulas_were_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_QA_DATA", str(tmp_path))
    packs = {"pack_length": 8192, "global_batch_size": 1, "micro_batch_size": 1}
    text = dry_run(load_recipe("scripts/recipes/qlora_12.8b.yaml", packs), None, Strategy())
    peaks = {int(count): float(gib) for count, gib in re.findall(r"^(\d+) of 40 +([\d.]+)$", text, re.MULTILINE)}
    assert peaks.keys() == {0, 20, 40}
    assert peaks[0] == pytest.approx(65.6, rel=0.03), "measured on an H100, as the next"
    assert peaks[40] == pytest.approx(11.8, rel=0.03)
    plain = load_recipe("scripts/recipes/qlora_12.8b.yaml", {**packs, "fast": "off"})
    assert "layers recomputed" not in dry_run(plain, None, Strategy())
    assert "layers recomputed" not in dry_run(load_recipe("scripts/recipes/full_kogpt2.yaml"), None, Strategy())


def test_without_the_tokenizer_references_are_estimated_too():
    records = [QARecord(f"r{n}", (f"{n}번 벽지는 왜 우나요?",), (f"{n}번은 습기 때문입니다.",)) for n in range(9)]
    counts = {}
    for number in (0, 2):
        recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml", {"retrieval": number})
        packs, counts[number], how = count_packs(recipe, records)
        assert how.startswith("estimated at 0.6 tokens a character")
        assert packs == -(-counts[number] // 512)
    reference = "참고 질문: 0번 벽지는 왜 우나요?\n참고 답변: 0번은 습기 때문입니다."
    assert counts[2] - counts[0] == pytest.approx(9 * 0.6 * (2 * len(reference) + len("\n\n")), abs=1)
    long = replace(recipe, max_length=30, pack_length=30)
    assert count_packs(long, records)[1] == 9 * 30, "no document is longer"
