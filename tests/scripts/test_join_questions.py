"""join_questions through the real command line: trained, gone on with in the middle of an epoch, evaluated, asked."""

import csv
import shutil

import pytest
import yaml
from command_line import run_script
from safetensors.torch import load_file

from llm_qa import files


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, records):
    """Prepared data of the records."""
    raw, out = tmp_path_factory.mktemp("raw") / "train.csv", tmp_path_factory.mktemp("data") / "small"
    with open(raw, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "질문_1", "질문_2", "category", "답변_1", "답변_2"])
        writer.writerows([r.id, *r.questions, r.category, *r.answers] for r in records)
    done = run_script("scripts/prepare_data.py", raw, "--out", out, "--test", "0.3")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def train(tmp_path_factory, neox_folder, prepared):
    """A function that trains a run of three epochs, a checkpoint every second update, or goes on with it."""
    recipe = tmp_path_factory.mktemp("recipe") / "small.yaml"
    values = {"model": str(neox_folder), "base_precision": "fp32", "max_length": 256, "pack_length": 256}
    values |= {"learning_rate": 1e-2, "num_train_epochs": 3, "keep": "last", "eval_strategy": "no"}
    values |= {"save_steps": 2, "save_total_limit": 100, "global_batch_size": 2, "join_questions": 0.4}
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    return lambda run, *more: run_script("scripts/train.py", recipe, "--data", prepared, "--run", run, *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    """A finished run and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "joined"
    done = train(run)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_a_run_that_goes_on_in_an_epoch_draws_the_same_documents(trained, train, tmp_path):
    run, screen = trained
    assert "documents of the first epoch ask two questions, drawn anew each" in screen
    assert yaml.safe_load((run / files.RECIPE).read_text())["join_questions"] == 0.4
    steps = files.read_json(run / files.TRAINING)["steps"]
    middle = steps // 3 + 2 - steps // 3 % 2  # a checkpoint within the second epoch
    assert steps // 3 < middle < 2 * (steps // 3)
    other = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(other / files.ADAPTER)
    (other / files.TRAINING).unlink()
    for folder in (other / files.CHECKPOINTS).glob("checkpoint-*"):
        if int(folder.name.removeprefix("checkpoint-")) > middle:
            shutil.rmtree(folder)
    done = train(other)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint-{middle}" in done.stdout
    one, two = (load_file(folder / files.ADAPTER / "adapter_model.safetensors") for folder in (run, other))
    assert all(one[name].equal(two[name]) for name in one)


def test_the_share_is_a_share_and_persistent_workers_are_refused(train, tmp_path):
    done = train(tmp_path / "run", "--join-questions", "1.5")
    assert done.returncode == 2
    assert "join_questions is 1.5 and must be below 1" in done.stderr
    done = train(tmp_path / "run", "--dataloader-num-workers", "1", "--dataloader-persistent-workers")
    assert done.returncode == 2
    assert "dataloader_persistent_workers would not see" in done.stderr
