"""Recipes: strict keys, every problem at once, flags in the same words."""

from pathlib import Path

import pytest

from llm_qa.config import load_recipe, make_recipe, recipe_flags
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
        ({"base_precision": "bf16", "double_quant": True}, "double_quant would be ignored"),
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
    ],
)
def test_bad_values_are_refused_with_the_reason(values, sentence):
    with pytest.raises(UserError, match=sentence):
        make_recipe(values)


def test_text_is_converted_by_the_type_that_the_key_wants():
    recipe = make_recipe({"learning_rate": "5e-5", "double_quant": "false", "lora_targets": "dense,query_key_value"})
    assert recipe.training["learning_rate"] == 5e-5
    assert recipe.double_quant is False
    assert recipe.lora_targets == ["dense", "query_key_value"]


def test_flags_and_keys_are_the_same_words():
    flags = recipe_flags(["--learning-rate", "1e-4", "--seed=7", "--no-recompute", "--weight-decay", "-1"])
    assert flags == {"learning_rate": "1e-4", "seed": "7", "recompute": "false", "weight_decay": "-1"}
    recipe = load_recipe("scripts/recipes/tiny.yaml", {"seed": "7", "recompute": "true"})
    assert (recipe.seed, recipe.recompute) == (7, True)


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
        "full_kogpt2",
        "full_1.3b",
        "qlora_12.8b",
        "qlora_12.8b_t4x2",
        "lora_12.8b",
        "full_12.8b",
    }


def test_the_qlora_recipe_has_the_original_settings():
    recipe = load_recipe("scripts/recipes/qlora_12.8b.yaml")
    assert (recipe.base_precision, recipe.double_quant) == ("nf4", True)
    assert (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout) == (8, 32, 0.05)
    assert recipe.lora_targets is None
    assert recipe.training["optim"] == "adamw_8bit"


def test_a_missing_recipe_names_those_that_exist():
    with pytest.raises(UserError, match=r"does not exist\. Recipes there: .*tiny\.yaml"):
        load_recipe("scripts/recipes/tinny.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "{", "1: 2\n", ""])
def test_a_file_that_is_not_a_recipe_is_one_sentence(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(path)
