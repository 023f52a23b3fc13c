"""bench.py through the command line, on the tiny model."""

import importlib.util
import json

import pytest
from command_line import run_script

TINY = "model: embedded\npack_length: 128\nmax_length: 128\nglobal_batch_size: 2\nlora_r: 2\nrecompute: none\n"
SHORT = ("--steps", "2", "--warmup", "1")


def test_contenders_train_side_by_side_and_the_rows_are_kept(tmp_path):
    recipe, out = tmp_path / "r.yaml", tmp_path / "bench.jsonl"
    recipe.write_text(TINY)
    baselines = ("ours", "fp8-base", "loop", "original")
    done = run_script("scripts/bench.py", recipe, *SHORT, "--out", out, "--baselines", *baselines)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["baseline"] for row in rows] == list(baselines)
    for row in rows:
        assert row["updates_measured"] == 2
        assert 5 < row["last_loss"] < 10  # random tokens: about ln 8000, the size of the vocabulary, which is 9.0
        assert row["matmul_peak"] > 1e8
        assert row["start_up_seconds"] > 1
        assert f"{row['tokens_per_second']:,.0f}" in done.stdout
    mine, fp8_base, loop, original = rows
    assert fp8_base["settings"]["base_precision"] == "fp8"
    assert "fp8, products in fp8 and fp32" in fp8_base["path"]
    for row in (mine, fp8_base, loop):
        assert 300 < row["tokens_measured"] <= 512  # two updates of two packs, real tokens only
    assert mine["packs_full"] > 0.95
    assert 64 * 40 < original["tokens_measured"] < 64 * 128  # two updates of 32 pairs, padded to 128: fewer are real
    assert original["settings"]["micro_batch_size"] == 8
    assert original["flops_per_token"] == 6 / 4 * mine["flops_per_token"]  # it recomputes every layer


def test_under_accelerate_launch_the_strategy_itself_is_measured(tmp_path):
    recipe, out = tmp_path / "r.yaml", tmp_path / "bench.jsonl"
    recipe.write_text(TINY)
    for flags in ((), ("--base-precision", "fp32")):
        done = run_script("scripts/bench.py", recipe, *SHORT, "--out", out, *flags, launch=True)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["settings"]["base_precision"] for row in rows] == ["nf4", "fp32"]
    assert {row["baseline"] for row in rows} == {"ours"}
    assert "embedded lora fp32" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="TRL is installed")
def test_a_contender_that_cannot_run_is_named(tmp_path):
    done = run_script("scripts/bench.py", *SHORT, "--out", tmp_path / "bench.jsonl", "--baselines", "trl")
    assert done.returncode == 1
    assert "TRL is not installed" in done.stderr
    assert "not measured, see above: trl, tiny" in done.stdout
    assert not (tmp_path / "bench.jsonl").exists()


def test_answering_is_measured_in_every_way(tmp_path):
    out = tmp_path / "bench.jsonl"
    done = run_script("scripts/bench.py", "--generate", "--questions", "4", "--new-tokens", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["baseline"], row["rows"], row["tokens_measured"]) for row in rows] == [
        ("original", 1, 3),
        ("plain", 4, 12),
        ("static", 4, 12),
    ]
    assert "ms per token step" in done.stdout


def test_an_amount_of_memory_that_is_none_is_refused(tmp_path):
    done = run_script("scripts/bench.py", "--gpu-memory-limit", "much")
    assert done.returncode == 2
    assert "'much' is not an amount of memory like 16GiB" in done.stderr
