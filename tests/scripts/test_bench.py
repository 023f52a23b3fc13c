"""bench.py through the command line, on the tiny model."""

import json

from command_line import run_script


def test_a_recipe_is_measured_and_the_row_kept(tmp_path):
    out = tmp_path / "bench.jsonl"
    for flags in ((), ("--base-precision", "fp32")):
        recipe = tmp_path / "r.yaml"
        recipe.write_text("model: embedded\npack_length: 128\nmax_length: 128\nglobal_batch_size: 2\nlora_r: 2\n")
        done = run_script(
            "scripts/bench.py", recipe, "--steps", "2", "--warmup", "1", "--out", out, *flags, launch=True
        )
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["settings"]["base_precision"] for row in rows] == ["nf4", "fp32"]
    for row in rows:
        assert row["updates_measured"] == 2
        assert 300 < row["tokens_measured"] <= 512  # two updates of two packs, real tokens only
        assert 5 < row["last_loss"] < 9  # random tokens: about ln 1024
        assert row["packs_full"] > 0.95
    assert "embedded lora nf4" in done.stdout
    assert "embedded lora fp32" in done.stdout
