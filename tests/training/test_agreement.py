"""Machines that would not train the same run together are refused before a weight is read."""

import pytest

from llm_qa import files
from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.training import agreement
from llm_qa.training.run_signature import run_signature


@pytest.fixture
def first(tmp_path, monkeypatch):
    """What the first machine is made of, and its run folder, which this process looks at as another machine."""
    run = tmp_path / "run"
    run.mkdir()
    (run / files.ENVIRONMENT).write_text("{}")
    signature = run_signature(make_recipe({}), "a" * 64, 2)
    seen = signature, (run / files.ENVIRONMENT).stat().st_mtime_ns
    monkeypatch.setattr(agreement, "run_on_main", lambda work: seen)
    return run, signature


def test_machines_that_agree(first):
    agreement.check_ranks_agree(*first, patience_seconds=0)


def test_a_run_folder_on_each_machines_own_disk_is_refused(first, tmp_path):
    run, signature = first
    with pytest.raises(UserError, match=r"does not see .*elsewhere as the first machine does.* disk that they share"):
        agreement.check_ranks_agree(tmp_path / "elsewhere", signature, patience_seconds=0)
    (run / files.ENVIRONMENT).unlink()
    (run / files.ENVIRONMENT).write_text("{}")  # the same content, another file
    with pytest.raises(UserError, match="does not see"):
        agreement.check_ranks_agree(run, signature, patience_seconds=0)


def test_another_recipe_or_other_data_on_a_machine_is_refused(first):
    run, signature = first
    with pytest.raises(UserError, match=r"do not agree: .*the data aaaaaaaaaaaa -> bbbbbbbbbbbb.*same recipe and"):
        agreement.check_ranks_agree(run, {**signature, "data_sha256": "b" * 64})
    with pytest.raises(UserError, match="seed 42 -> 43"):
        agreement.check_ranks_agree(run, {**signature, "recipe": make_recipe({"seed": 43}).to_dict()})
