"""Runs, recipes and commands of earlier versions go on working.

tests/old_runs/format_1 is a run as the code before format_version wrote it, on a GPT-NeoX of one layer. It was made in
the project's folder, on 16 rows of the bundled CSV, and is never written again; a later format gets a folder beside it,
in the same way with the code of that format:

    python scripts/prepare_data.py few.csv --out tests/old_runs/format_1/data --validation 0.2 --test 0.2
    python scripts/train.py scripts/recipes/tiny.yaml --data tests/old_runs/format_1/data \
        --run tests/old_runs/format_1/run --model tests/old_runs/format_1/base --lora-r 2 --lora-alpha 4 \
        --base-precision fp32 --max-length 1000 --pack-length 1024 --max-steps 4 --save-steps 2 --logging-steps 1
    python scripts/evaluate.py --run tests/old_runs/format_1/run --base --max-new-tokens 8 --limit 2
    rm -r tests/old_runs/format_1/run/checkpoints/checkpoint-4
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from command_line import run_script
from safetensors.torch import load_file

from llm_qa import files, migrations
from llm_qa.config.recipe import RECIPE_FIELDS, load_recipe, load_stored_recipe, make_recipe, stored_recipe
from llm_qa.config.training_argument_types import installed_names
from llm_qa.console import UserError
from llm_qa.evaluation.evaluations import load_evaluation
from llm_qa.migrations import stamped
from llm_qa.models.loading import load_run, run_recipe
from llm_qa.training.checkpoint.manifest import damage, read_manifest

OLD = Path("tests/old_runs/format_1/run")
TRAIN = [
    *("scripts/train.py", "scripts/recipes/tiny.yaml", "--data", OLD.parent / "data", "--model", OLD.parent / "base"),
    *("--lora-r", "2", "--lora-alpha", "4", "--base-precision", "fp32", "--max-length", "1000"),
    *("--pack-length", "1024", "--max-steps", "4", "--save-steps", "2", "--logging-steps", "1"),
]


@pytest.fixture
def old_run(tmp_path) -> Path:
    """A copy of the old run, which commands may write into."""
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_an_old_run_resumes_to_the_same_weights(old_run):
    """Interrupted after step 2, under the flags of then, it ends with the adapter that the old code ended with."""
    shutil.rmtree(old_run / files.ADAPTER)
    (old_run / files.TRAINING).unlink()
    done = run_script(*TRAIN, "--run", old_run, "--fit", "--unsaved=go-on", "--max-silence", "900")
    assert done.returncode == 0, done.stderr
    assert f"going on from {old_run / 'checkpoints' / 'checkpoint-2'}" in done.stdout
    for line in (
        "--fit is now called --auto-micro-batch",
        "--unsaved is now called --on-save-error",
        "--max-silence is now called --rank-timeout",
    ):
        assert done.stdout.count(line) == 1
    now, then = (load_file(run / files.ADAPTER / "adapter_model.safetensors") for run in (old_run, OLD))
    assert now.keys() == then.keys()
    for name in then:
        assert now[name].equal(then[name]) or (now[name] - then[name]).abs().max() < 1e-5
    for name in (files.RECIPE, files.ENVIRONMENT, files.TRAINING):
        assert yaml.safe_load((old_run / name).read_text())[migrations.FORMAT_KEY] == migrations.FORMAT_VERSION
    written = read_manifest(old_run / files.CHECKPOINTS / "checkpoint-4")
    assert written[migrations.FORMAT_KEY] == migrations.FORMAT_VERSION
    assert "is already finished" in run_script(*TRAIN, "--run", old_run).stdout


def test_an_old_run_answers_is_evaluated_and_reported(old_run, tmp_path):
    asked = run_script("scripts/ask.py", "--run", old_run, "벽지가 들뜨나요?", "--max-new-tokens", "4")
    assert asked.returncode == 0, asked.stderr
    shown = run_script("scripts/report.py", old_run, "--out", tmp_path / "before")
    assert shown.returncode == 0, shown.stderr
    flags = ["--base", "--max-new-tokens", "8", "--limit", "2", "--again"]
    done = run_script("scripts/evaluate.py", "--run", old_run, *flags)
    assert done.returncode == 0, done.stderr
    assert "--again is now called --overwrite" in done.stdout
    for label in (files.TUNED, files.BASE):
        now, then = (load_evaluation(run, "test", label) for run in (old_run, OLD))
        assert [row["prediction"] for row in now.rows] == [row["prediction"] for row in then.rows]
        scores = files.read_json(files.evaluation_dir(old_run, "test", label) / files.SCORES)
        assert scores[migrations.FORMAT_KEY] == migrations.FORMAT_VERSION
    shown = run_script("scripts/report.py", old_run, "--out", tmp_path / "after")
    assert shown.returncode == 0, shown.stderr


def test_the_files_of_an_old_run_are_read_as_those_of_today():
    checkpoint = OLD / files.CHECKPOINTS / "checkpoint-2"
    assert not damage(checkpoint)
    assert read_manifest(checkpoint)["about"]["run_signature"]["recipe"]["lora_r"] == 2
    assert "fingerprint" not in read_manifest(checkpoint)["about"]
    assert run_recipe(OLD).lora_alpha == 4
    load_run(OLD)


def write_stored(path, **values):
    path.write_text(yaml.safe_dump({**migrations.stamped({"model": "embedded", "lora_r": 4}), **values}))
    return path


def test_an_unknown_key_locks_no_run_but_is_an_error_in_a_recipe_of_the_user(tmp_path, capsys):
    path = write_stored(tmp_path / "recipe.yaml", brand_new=1, another=2)
    assert load_stored_recipe(path).lora_r == 4
    told = capsys.readouterr().out
    assert told == f"note: {path} has keys that this version does not know and ignores: another, brand_new\n"
    with pytest.raises(UserError, match="brand_new is not a known key"):
        load_recipe(path)


def test_a_key_that_is_decided_elsewhere_today_locks_no_run(tmp_path, capsys):
    assert "bf16" not in load_stored_recipe(write_stored(tmp_path / "recipe.yaml", bf16=True)).to_dict()
    assert "ignores: bf16" in capsys.readouterr().out


def test_a_value_that_nobody_knows_is_an_error_wherever_it_is(tmp_path):
    with pytest.raises(UserError, match="'int3' is not one of"):
        load_stored_recipe(write_stored(tmp_path / "recipe.yaml", base_precision="int3"))


def test_a_newer_version_is_said(tmp_path, capsys):
    load_stored_recipe(write_stored(tmp_path / "recipe.yaml", format_version=migrations.FORMAT_VERSION + 1))
    assert f"a newer version of this project (format {migrations.FORMAT_VERSION + 1}" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["two", 0, True, 1.5, None, [1]])
def test_a_format_that_is_no_number_is_one_sentence(tmp_path, version):
    with pytest.raises(UserError, match="which is not a whole number of at least 1"):
        load_stored_recipe(write_stored(tmp_path / "recipe.yaml", format_version=version))


@pytest.fixture
def renamed(monkeypatch):
    """As if micro_batch_size had once been `batch`, and fp32 `single`."""
    monkeypatch.setitem(migrations.RENAMED_RECIPE_KEYS, "batch", "micro_batch_size")
    monkeypatch.setitem(migrations.RENAMED_RECIPE_VALUES, ("base_precision", "single"), "fp32")


def test_earlier_keys_and_values_of_a_recipe_go_on_with_a_line(tmp_path, capsys, renamed):
    path = tmp_path / "mine.yaml"
    path.write_text("batch: 2\nglobal_batch_size: 4\n")
    recipe = load_recipe(path, {"base_precision": "single"})
    assert (recipe.micro_batch_size, recipe.base_precision) == (2, "fp32")
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"note: {path}: batch is now called micro_batch_size",
        "note: the command line: base_precision: single is now called fp32",
    ]
    assert load_recipe(path, {"batch": "4"}).micro_batch_size == 4
    stored = stored_recipe({"batch": 3, "global_batch_size": 6}, "x")
    assert stored.micro_batch_size == 3


def test_a_setting_under_both_of_its_names_is_refused(tmp_path, renamed):
    (tmp_path / "mine.yaml").write_text("batch: 2\nmicro_batch_size: 2\n")
    with pytest.raises(UserError, match="batch is the earlier name of micro_batch_size, which is given too"):
        load_recipe(tmp_path / "mine.yaml")


def test_what_a_new_key_meant_before_it_was_there(monkeypatch):
    monkeypatch.setitem(migrations.IMPLIED_BY_OLD_RUNS, "recompute", "all")
    assert stored_recipe({}, "x").recompute == "all"
    assert stored_recipe({"recompute": "none"}, "x").recompute == "none"


def test_flags_and_their_values_are_translated(capsys):
    words = ["r.yaml", "--fit", "--unsaved", "go-on", "--max-silence=3", "--lora-r", "4", "--data", "go-on"]
    assert migrations.renamed_flags(words) == [
        *("r.yaml", "--auto-micro-batch", "--on-save-error", "continue", "--rank-timeout=3", "--lora-r", "4"),
        *("--data", "go-on"),
    ]
    assert capsys.readouterr().out.count("is now called") == 4
    assert migrations.renamed_flags(["--unsaved=go-on"]) == ["--on-save-error=continue"]
    assert migrations.renamed_flags(["--unsaved=stop"]) == ["--on-save-error=stop"]


def test_a_file_under_its_earlier_name_is_found_until_the_new_one_is_there(tmp_path):
    new, old = tmp_path / files.MICRO_BATCH, tmp_path / "fit.json"
    assert migrations.stored_file(tmp_path, files.MICRO_BATCH) == new
    old.write_text(json.dumps({"micro_batch_size": 1}))
    assert migrations.stored_file(tmp_path, files.MICRO_BATCH) == old
    new.write_text("{}")
    assert migrations.stored_file(tmp_path, files.MICRO_BATCH) == new


def test_every_table_leads_to_names_of_today():
    known = {*RECIPE_FIELDS, *installed_names()}
    assert {*migrations.RENAMED_RECIPE_KEYS.values(), *migrations.IMPLIED_BY_OLD_RUNS} <= known
    assert not migrations.RENAMED_RECIPE_KEYS.keys() & known
    assert max(migrations.RENAMED_KEYS) <= migrations.FORMAT_VERSION
    scripts = "".join(path.read_text(encoding="utf-8") for path in Path("scripts").glob("*.py"))
    for old, new in migrations.RENAMED_FLAGS.items():
        assert f'"{new}"' in scripts
        assert f'"{old}"' not in scripts


def test_the_recipe_of_a_run_is_a_recipe_for_another(tmp_path):
    stored = tmp_path / "recipe.yaml"
    recipe = make_recipe({"learning_rate": 3e-4, "keep": "last"})
    stored.write_text(yaml.safe_dump(stamped(recipe.to_dict())), encoding="utf-8")
    assert load_recipe(stored) == recipe == load_stored_recipe(stored)
    assert load_recipe(stored, {"keep": "best"}).keep == "best"
