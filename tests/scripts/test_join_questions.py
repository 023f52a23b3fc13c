"""join_questions through the real command line: trained, gone on with in the middle of an epoch, evaluated, asked."""

import shutil

import pytest
import yaml
from command_line import run_script

from llm_qa import files


@pytest.fixture(scope="module")
def train(train_with):
    """A function that trains a run of three epochs, a checkpoint every second update, or goes on with it."""
    often = {"num_train_epochs": 3, "eval_strategy": "no", "save_steps": 2, "save_total_limit": 100}
    return train_with(**often, global_batch_size=2, join_questions=0.4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    """A finished run and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "joined"
    done = train(run)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_a_run_that_goes_on_in_an_epoch_draws_the_same_documents(trained, train, goes_on_the_same, tmp_path):
    run, screen = trained
    assert "documents of the first epoch ask two questions, drawn anew each" in screen
    assert yaml.safe_load((run / files.RECIPE).read_text())["join_questions"] == 0.4
    goes_on_the_same(train, run, tmp_path / "again")


def test_the_share_is_a_share_and_persistent_workers_are_refused(train, tmp_path):
    done = train(tmp_path / "run", "--join-questions", "1.5")
    assert done.returncode == 2
    assert "join_questions is 1.5 and must be below 1" in done.stderr
    done = train(tmp_path / "run", "--dataloader-num-workers", "1", "--dataloader-persistent-workers")
    assert done.returncode == 2
    assert "dataloader_persistent_workers would not see" in done.stderr


def test_held_out_questions_are_asked_two_at_once_and_scored_apart(trained):
    run, _ = trained
    done = run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    single, joined = (
        files.read_jsonl(files.evaluation_dir(run, "test", label) / files.PREDICTIONS)
        for label in (files.TUNED, files.JOINED)
    )
    by_id = {row["id"]: row for row in single}
    for row in joined:
        first, second = (by_id[name] for name, _ in row["joined"])
        assert row["references"] == [f"{a} {b}" for a, b in zip(first["references"], second["references"], strict=True)]
    found = files.read_json(files.evaluation_dir(run, "test", files.JOINED) / files.SCORES)
    coverage, metrics = found["coverage"], found["scores"]["metrics"]
    assert coverage["character_f1"] == pytest.approx(metrics["character_f1"]["value"], abs=1e-5)
    assert coverage["share"] == pytest.approx(coverage["character_f1"] / coverage["single"], abs=1e-4)
    assert f"two questions at once: character F1 {coverage['character_f1']:.3f}" in done.stdout


def test_a_file_of_double_questions_is_noted_where_none_were_trained(trained, tmp_path):
    path, out = tmp_path / "test.csv", tmp_path / "answers.csv"
    path.write_text(
        "id,질문\n1,결로는 왜 생기나요? 그리고 마루는 언제 까나요?\n2,마루는 언제 까나요?\n", encoding="utf-8"
    )
    note = f"{path}: 1 of 2 questions ask two things at once"
    asked = run_script("scripts/ask.py", "--run", trained[0], "--file", path, "--out", out, "--max-new-tokens", "4")
    assert asked.returncode == 0, asked.stderr
    assert note not in asked.stdout
    other = tmp_path / "single"
    shutil.copytree(trained[0], other)
    recipe = yaml.safe_load((other / files.RECIPE).read_text())
    del recipe["join_questions"]
    (other / files.RECIPE).write_text(yaml.safe_dump(recipe))
    asked = run_script("scripts/ask.py", "--run", other, "--file", path, "--out", out, "--max-new-tokens", "4")
    assert f"{note}, which this run was not trained on" in asked.stdout
    raw = tmp_path / "raw.csv"
    raw.write_text("질문,답변\n" + "".join(f"{i}번은 무엇인가요?,{i}번 답\n" for i in range(20)), encoding="utf-8")
    done = run_script("scripts/prepare_data.py", raw, "--out", tmp_path / "data", "--questions", path)
    assert done.returncode == 0, done.stderr
    assert note in done.stdout
