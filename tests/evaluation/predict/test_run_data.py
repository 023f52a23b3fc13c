"""What a run was trained on, and the folder for evaluations of other data."""

from pathlib import Path

import pytest

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.data.preparation import prepare
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.splits import load_split
from llm_qa.evaluation.predict.run_data import (
    data_name,
    data_of_run,
    evaluated_in,
    groups_of_split,
    line_breaks_of_run,
    training_records,
)
from llm_qa.models.loading import base_of_run


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder where data/mine, data/other and runs/one lie; the run was trained there on `--data data/mine`."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        rows = "".join(f"{name} {i}번은 왜?,답은 {name} {i % 20}.\n" for i in range(40))
        files.write_text(f"{name}.csv", f"질문,답변\n{rows}")
        prepare([tmp_path / f"{name}.csv"], f"data/{name}", PreparationOptions(test=0.3))
    about = {"data": "data/mine", "data_sha256": files.sha256_file("data/mine/manifest.json")}
    files.write_json("runs/one/environment.json", about)
    return tmp_path


def test_a_relative_path_is_found_from_any_folder(project, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    run = project / "runs" / "one"
    assert data_of_run(run) == project / "data" / "mine"
    Path("data/mine").mkdir(parents=True)
    assert data_of_run(run) == project / "data" / "mine", "not another project's of the same name"
    assert len(training_records(run, data_of_run(run))) == len(load_split(project / "data" / "mine", "train"))
    files.write_json(run / "environment.json", {})
    with pytest.raises(UserError, match="name prepared data with --data"):
        data_of_run(run)


def test_line_breaks_of_what_is_asked_are_those_of_the_runs_data(project):
    run = project / "runs" / "one"
    assert line_breaks_of_run(run) == "keep"
    prepare([project / "mine.csv"], "data/mine", PreparationOptions(line_breaks="join"), overwrite=True)
    assert line_breaks_of_run(run) == "join"
    manifest = project / "data" / "mine" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("line_breaks", "of_another_version"))
    assert line_breaks_of_run(run) == "join", "before there was a choice, lines were joined"
    manifest.unlink()
    assert line_breaks_of_run(run) == "keep"


def test_a_relative_base_model_is_found_from_any_folder(project, tmp_path_factory, monkeypatch):
    run, base = project / "runs" / "one", project / "models" / "base"
    base.mkdir(parents=True)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert base_of_run(run, Recipe(model="models/base")) == str(base)
    assert base_of_run(run, Recipe(model="skt/kogpt2-base-v2")) == "skt/kogpt2-base-v2"
    assert base_of_run(run, Recipe(model="embedded")) == str(run / "base")


def test_other_data_has_a_folder_of_its_own(project):
    run, other = project / "runs" / "one", project / "data" / "other"
    name = data_name(run, other)
    assert name == f"other-{files.sha256_file(other / 'manifest.json')[:8]}"
    assert data_name(run, project / "data" / "mine") == evaluated_in(run, None) == ""
    assert files.evaluation_dir(run, "test", "base", name) == run / "eval" / name / "test-base"
    with pytest.raises(UserError, match="is not prepared data"):
        data_name(run, project)


def test_data_that_changed_since_training_is_other_data(project, capsys):
    run, mine = project / "runs" / "one", project / "data" / "mine"
    prepare([project / "other.csv"], mine, PreparationOptions(), overwrite=True)
    assert data_name(run, mine) == evaluated_in(run, None) != ""
    assert training_records(run, mine) is None
    assert "which is missing" in capsys.readouterr().out


def test_records_are_grouped_as_the_data_was(project):
    mine = project / "data" / "mine"
    records = load_split(mine, "test")
    assert len(set(groups_of_split(mine, records).values())) == len(records) / 2, "two questions an answer"
    prepare([project / "mine.csv"], project / "by_question", PreparationOptions(group_by="questions"))
    records = load_split(project / "by_question", "test")
    assert len(set(groups_of_split(project / "by_question", records).values())) == len(records)
