"""Data that tests of several scripts train on."""

import csv
import shutil

import pytest
import yaml
from command_line import run_script
from safetensors.torch import load_file

from llm_qa import files


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def train_with(tmp_path_factory, neox_folder, prepared):
    """A function of recipe values that gives a function which trains a small run with them, on `data`."""

    def train_with(data=prepared, **values):
        recipe = tmp_path_factory.mktemp("recipe") / "small.yaml"
        small = {"model": str(neox_folder), "base_precision": "fp32", "max_length": 256, "pack_length": 256}
        small |= {"learning_rate": 1e-2, "keep": "last"}
        recipe.write_text(yaml.safe_dump(small | values), encoding="utf-8")
        return lambda run, *more: run_script("scripts/train.py", recipe, "--data", data, "--run", run, *more)

    return train_with


@pytest.fixture(scope="session")
def goes_on_the_same():
    """A check that a run of three epochs, stopped in the second and gone on with by `train`, has the same weights."""

    def check(train, run, other):
        steps = files.read_json(run / files.TRAINING)["steps"]
        middle = steps // 3 + 2 - steps // 3 % 2  # a checkpoint within the second epoch
        assert steps // 3 < middle < 2 * (steps // 3)
        shutil.copytree(run, other)
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

    return check
