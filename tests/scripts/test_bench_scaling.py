"""bench_scaling.py through the command line, on CPU processes and the tiny model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from command_line import run_script

TINY = "model: embedded\nbase_precision: fp32\npack_length: 128\nmax_length: 128\nlora_r: 2\nrecompute: none\n"


def scaling_script():
    path = Path(__file__).parents[2] / "scripts" / "bench_scaling.py"
    spec = importlib.util.spec_from_file_location("bench_scaling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.distributed
def test_the_tokens_of_a_pass_stay_and_the_efficiency_is_that_of_the_rows(tmp_path):
    recipe, out = tmp_path / "r.yaml", tmp_path / "scaling.jsonl"
    recipe.write_text(TINY)
    flags = ("--gpus", "1", "2", "--ways", "qlora-ddp", "--packs", "2", "--steps", "2", "--warmup", "1")
    done = run_script("scripts/bench_scaling.py", *flags, "--recipe", recipe, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())
    assert (one["gpus"], two["gpus"]) == (1, 2)
    assert (one["settings"]["global_batch_size"], two["settings"]["global_batch_size"]) == (2, 4)
    assert one["settings"]["micro_batch_size"] == two["settings"]["micro_batch_size"] == 2
    assert 1.7 < two["tokens_measured"] / one["tokens_measured"] < 2.3
    efficiency = two["tokens_per_second"] / 2 / one["tokens_per_second"]
    assert f"{efficiency:.1%} of 1" in done.stdout


def test_the_table_orders_rows_and_gives_the_share_of_communication():
    script = scaling_script()
    row = {"way": "lora-zero3", "peak_allocated_bytes": 2**30, "peak_reserved_bytes": 2**31}
    four = {
        **row,
        "gpus": 4,
        "tokens_per_second": 3600.0,
        "milliseconds_by_category": {script.COMMUNICATION: 25, "x": 75},
    }
    text = script.table([four, {**row, "gpus": 2, "tokens_per_second": 2000.0}])
    lines = [line for line in text.splitlines() if line.startswith("lora-zero3")]
    assert [line.split()[1] for line in lines] == ["2", "4"]
    assert "90.0% of 2" in lines[1]
    assert lines[1].rstrip().endswith("25%")


def test_a_failed_measurement_is_said_and_ends_with_code_1(tmp_path):
    recipe, out = tmp_path / "r.yaml", tmp_path / "scaling.jsonl"
    recipe.write_text(TINY)
    flags = ("--gpus", "1", "--ways", "qlora-ddp", "--packs", "2", "--seconds", "1", "--recipe", recipe)
    done = run_script("scripts/bench_scaling.py", *flags, "--out", out)
    assert done.returncode == 1
    assert "qlora-ddp on 1 was not measured: it took longer than --seconds 1" in done.stdout
    assert not out.exists()


@pytest.mark.parametrize("way", scaling_script().WAYS.values(), ids=lambda way: way.name)
def test_every_way_names_a_recipe_and_an_accelerate_config(way):
    script = scaling_script()
    assert (script.SCRIPTS / "recipes" / f"{way.recipe}.yaml").is_file()
    assert (script.CONFIGS / f"{way.config}.yaml").is_file()
