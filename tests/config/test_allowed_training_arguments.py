"""Every name of TrainingArguments is classified, and what is called honoured reaches Trainer as it was given."""

import pytest

from llm_qa.config.allowed_training_arguments import (
    DECIDED_ELSEWHERE,
    HONOURED,
    REFUSED,
    installed_names,
    reason_against,
)
from llm_qa.config.recipe import RECIPE_FIELDS, make_recipe
from llm_qa.console import UserError
from llm_qa.models.precision import resolve_precision
from llm_qa.training.strategy import Strategy
from llm_qa.training.trainer import training_arguments

# A value of each honoured name that is neither transformers' default nor the project's.
VALUES = {
    "max_steps": 7,
    "num_train_epochs": 1.5,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.2,
    "optim": "adafactor",
    "weight_decay": 0.3,
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.7,
    "logging_strategy": "epoch",
    "logging_steps": 3,
    "logging_first_step": False,
    "log_level": "error",
    "log_level_replica": "error",
    "report_to": ["reporter"],
    "run_name": "mine",
    "project": "ours",
    "trackio_space_id": "space",
    "trackio_bucket_id": "bucket",
    "trackio_static_space_id": "static",
    "eval_strategy": "no",
    "eval_steps": 5,
    "eval_delay": 2,
    "eval_on_start": True,
    "save_strategy": "epoch",
    "save_steps": 9,
    "save_total_limit": 4,
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 3,
    "dataloader_persistent_workers": True,
    "tf32": False,
    "torch_empty_cache_steps": 6,
    "ddp_timeout": 99,
}


def arguments_of(tmp_path, **values):
    recipe = make_recipe(values)
    return training_arguments(recipe, resolve_precision(recipe, None), Strategy(), tmp_path)


def test_every_name_of_the_installed_version_is_in_one_table():
    tables = (HONOURED, DECIDED_ELSEWHERE, REFUSED, RECIPE_FIELDS)
    unknown = [name for name in installed_names() if sum(name in table for table in tables) != 1]
    assert not unknown, "say in llm_qa/config/allowed_training_arguments.py what becomes of them"
    assert installed_names().keys() >= HONOURED


def test_a_name_that_a_new_version_brings_is_refused_until_it_is_classified(monkeypatch):
    monkeypatch.setattr("llm_qa.config.allowed_training_arguments.installed_names", lambda: {"new_optimiser": bool})
    with pytest.raises(UserError, match="new_optimiser cannot be set: it is new in the installed transformers"):
        make_recipe({"new_optimiser": True})


@pytest.mark.parametrize("name", sorted(HONOURED))
def test_what_is_honoured_arrives_at_trainer_as_given(tmp_path, monkeypatch, name):
    monkeypatch.setattr("llm_qa.training.trainer.check_trackers", lambda arguments: None)
    needs = {"report_to": "reporter"} if name.startswith(("run_", "project", "trackio")) else {}
    needs |= {"dataloader_num_workers": 1} if name.startswith("dataloader_p") else {}
    before = getattr(arguments_of(tmp_path), name)
    after = getattr(arguments_of(tmp_path, **{**needs, name: VALUES[name]}), name)
    assert after == VALUES[name]
    assert before != after or name == "tf32"


@pytest.mark.parametrize("name", sorted(DECIDED_ELSEWHERE | REFUSED))
def test_what_is_not_honoured_is_refused_with_a_reason(name):
    with pytest.raises(UserError, match=f"{name} cannot be set: "):
        make_recipe({name: None})


def test_a_misspelt_name_is_no_refused_one():
    assert reason_against("lerning_rate") is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"run_name": "mine"}, "run_name would be ignored without report_to"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor would be ignored without dataloader_num"),
        ({"eval_strategy": "epoch"}, "eval_strategy epoch validates after an epoch's last checkpoint"),
    ],
)
def test_names_that_need_others_say_so(values, sentence):
    with pytest.raises(UserError, match=sentence):
        make_recipe(values)


@pytest.mark.parametrize(
    ("reporter", "sentence"), [("nobody", "nobody is not supported"), ("wandb", "wandb to be installed")]
)
def test_a_reporter_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, reporter, sentence):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(UserError, match=f"--report-to {reporter}: .*{sentence}") as error:
        arguments_of(tmp_path, report_to=reporter)
    assert "\n" not in str(error.value)
