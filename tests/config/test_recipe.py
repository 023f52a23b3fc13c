"""Recipes: strict keys, every problem at once, flags in the same words."""

import dataclasses
import time
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llm_qa.config.conversion import convert
from llm_qa.config.recipe import load_recipe, make_recipe, recipe_flags
from llm_qa.config.training_argument_types import installed_names
from llm_qa.console import UserError

RECIPES = sorted(Path("scripts/recipes").glob("*.yaml"))


def test_a_misspelt_key_is_an_error_with_the_nearest_known_one():
    with pytest.raises(UserError, match=r"lerning_rate is not a known key \(did you mean learning_rate\?\)"):
        make_recipe({"lerning_rate": 1e-4})


def test_every_problem_is_named_in_one_error():
    values = {"lora_r": 0, "loss_on": "half", "bf16": True, "max_length": 4096, "learning_rate": "fast"}
    with pytest.raises(UserError) as error:
        make_recipe(values)
    for part in ("lora_r is 0", "'half' is not one of answer, everything", "bf16 cannot be set", "pack_length 2048"):
        assert part in str(error.value)
    assert "learning_rate: 'fast' is not a number" in str(error.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "full", "base_precision": "nf4"}, "cannot train nf4 weights"),
        ({"method": "full", "base_precision": "fp32", "lora_r": 4}, "lora_r would be ignored"),
        ({"base_precision": "bf16", "double_quant": False}, "double_quant would be ignored"),
        ({"global_batch_size": 6, "micro_batch_size": 4}, "not a multiple of micro_batch_size"),
        ({"lora_dropout": 1.0}, "must be below 1.0"),
        ({"max_hours": 0}, "must be above 0"),
        ({"lora_r": True}, "True is not a whole number|True is not a number"),
        ({"seed": 1.5}, "1.5 is not a whole number"),
        ({"learning_rate": float("nan")}, "is not a number"),
        ({"gradient_accumulation_steps": 4}, "it follows from global_batch_size"),
        ({"max_steps": 0}, "max_steps is 0 and must be above 0"),
        ({"save_steps": 0}, "save_steps is 0 and must be above 0"),
        ({"seed": 2**32}, "seed is 4294967296 and must be below"),
        ({"lora_targets": "[query"}, "is not readable YAML"),
        ({"num_train_epochs": -1}, "num_train_epochs is -1 and must be above 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0 and must be at least 1"),
        ({"seed": 10**400}, "seed: 1000.*[.]{3} is not a whole number"),
        ({"model": "skt/\u202eevil"}, "has characters that cannot be printed"),
        ({"model": "skt/\ud800"}, "has characters that cannot be printed"),
        ({"lr_scheduler_kwargs": {"a": ["\x07"]}}, "has characters that cannot be printed"),
        ({"x" * 5000: 1}, r"x[.]{3} is not a known key"),
        ({"\x1b[2J": 1}, r"'.x1b\[2J' is not a known key"),
        ({f"key_{i}": i for i in range(9000)}, "has 9,000 keys, more than there are settings"),
        ({"output_dir": "../../elsewhere"}, "output_dir cannot be set: use --run"),
        ({"hub_token": "hf_SECRET"}, "hub_token cannot be set: a recipe is copied into the run folder"),
    ],
)
def test_bad_values_are_refused_with_the_reason(values, sentence):
    with pytest.raises(UserError, match=sentence):
        make_recipe(values)


SAMPLES = (None, True, 3, 2.5, "1", "true", "x", "none", "steps", "[a, b]", "{a: 1}", [], {})


def outcome(value, hint):
    """What a value is converted to, or that it is refused."""
    try:
        return convert(value, hint)
    except ValueError:
        return "refused"


def test_the_types_of_training_arguments_are_those_of_the_class_itself():
    """They are read from its source: a value is converted, or refused, as by the class's own annotations."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    read = installed_names()
    assert read.keys() == {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    for name, hint in read.items():
        if hint is not Any:
            assert [outcome(v, hint) for v in SAMPLES] == [outcome(v, hints[name]) for v in SAMPLES], name
    assert [name for name, hint in read.items() if hint is Any] in ([], ["parallelism_config"])


def test_text_is_converted_by_the_type_that_the_key_wants():
    recipe = make_recipe({"learning_rate": "5e-5", "double_quant": "false", "lora_targets": "dense,query_key_value"})
    assert recipe.training["learning_rate"] == 5e-5
    assert recipe.double_quant is False
    assert recipe.lora_targets == ["dense", "query_key_value"]


def test_flags_and_keys_are_the_same_words():
    flags = recipe_flags(["--learning-rate", "1e-4", "--seed=7", "--no-double-quant", "--weight-decay", "-1"])
    assert flags == {"learning_rate": "1e-4", "seed": "7", "double_quant": "false", "weight_decay": "-1"}
    recipe = load_recipe("scripts/recipes/tiny.yaml", {"seed": "7", "double_quant": "false"})
    assert (recipe.seed, recipe.double_quant) == (7, False)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seed", "1", "--seed=2"], "--seed is given twice"),
        (["--lora-r", "1", "--lora_r", "2"], "--lora_r is given twice"),
        (["--double-quant", "--no-double-quant"], "--no-double-quant is given twice \\(as double_quant\\)"),
    ],
)
def test_a_flag_given_twice_is_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        recipe_flags(flags)


def test_a_flag_without_dashes_is_refused():
    with pytest.raises(UserError, match="'stray' is not a flag"):
        recipe_flags(["stray"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_survives_its_own_yaml(path):
    recipe = load_recipe(path)
    assert make_recipe(recipe.to_dict()) == recipe


def test_the_recipes_of_the_design_are_there():
    assert {path.stem for path in RECIPES} == {
        "tiny",
        "demo",
        "full_kogpt2",
        "full_1.3b",
        "qlora_12.8b",
        "qlora_12.8b_t4x2",
        "lora_12.8b",
        "full_12.8b",
        "full_12.8b_zero3",
    }


def test_the_qlora_recipe_has_the_original_settings():
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml")
    assert (recipe.base_precision, recipe.double_quant) == ("nf4", True)
    assert (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout) == (8, 32, 0.05)
    assert recipe.lora_targets is None
    # Not the original's adamw_8bit: for LoRA's few weights it saves 0.15 GiB and costs 30 ms an update.
    assert recipe.training["optim"] == "adamw_torch_fused"


def test_a_missing_recipe_names_those_that_exist():
    with pytest.raises(UserError, match=r"does not exist\. Recipes there: .*tiny\.yaml"):
        load_recipe("scripts/recipes/tinny.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "{", "1: 2\n", ""])
def test_a_file_that_is_not_a_recipe_is_one_sentence(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(path)


LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghijk"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: 1\nmodel: embedded\nseed: 2\n", "'seed' is there twice, in lines 1 and 3"),
        ("{seed: 1, 'seed': 2}", "'seed' is there twice, in lines 1 and 1"),
        ("lr_scheduler_kwargs: {a: 1, a: 2}", "'a' is there twice"),
        (LAUGHS, "line 1 has the anchor or alias 'a': write the value out"),
        ("seed: *nothing", "anchor or alias 'nothing'"),
        ("<<: {seed: 1}", "has a merge key"),
        ("seed: " + "[" * 50_000, "nested more than 8 deep"),
        ("? " * 30_000, "nested more than 8 deep"),
        ("seed: " + "9" * 5000, "not readable YAML"),
        ("seed: 0x" + "f" * 50_000, "a number of more than 63 bits"),
        ("seed: " + ":".join(["1"] * 5000) + ".5", "not readable YAML|not a whole number"),
        ("seed: 2020-13-45", "month must be in 1..12"),
        ("? [a]\n: 1", "has a key that is not a word"),
        ("seed: !!python/object/apply:os.system ['true']", "has the tag 'tag:yaml.org,2002:python"),
        ("seed: !!timestamp x", "has the tag"),
        ("# " + "x" * 70_000, "at most 65,536 are read"),
        ("seed: \x00", "not readable YAML"),
        ("seed: 1\n---\nseed: 2", "not readable YAML"),
    ],
    ids=lambda value: value[:12].strip(),
)
def test_yaml_that_unfolds_or_hides_something_is_one_quick_sentence(tmp_path, text, sentence):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    begin = time.process_time()  # of this process alone: a busy machine does not count
    with pytest.raises(UserError, match=sentence) as error:
        load_recipe(path)
    assert time.process_time() - begin < 2
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_only_the_beginning_of_a_giant_file_is_read(tmp_path):
    path = tmp_path / "giant.yaml"
    with open(path, "wb") as file:
        file.write(b"seed: 1\n# ")
        file.truncate(10 * 1024**3)  # sparse
    with pytest.raises(UserError, match="at most 65,536 are read"):
        load_recipe(path)


def test_a_recipe_cannot_name_a_run_folder_outside_of_runs(tmp_path):
    (tmp_path / "...yaml").write_text("seed: 1", encoding="utf-8")
    with pytest.raises(UserError, match="has no name that a run folder could take"):
        load_recipe(tmp_path / "...yaml")


def test_a_recipe_in_utf8_with_bom_is_read(tmp_path):
    (tmp_path / "bom.yaml").write_text("seed: 1", encoding="utf-8-sig")
    assert load_recipe(tmp_path / "bom.yaml").seed == 1
