"""Which checkpoint a run goes on from."""

import pytest

from llm_qa.console import UserError
from llm_qa.training.checkpoints import newest_checkpoint, resume_point

FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors")


def checkpoint(run, step, without=None):
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        if name != without:
            (folder / name).write_text("x")
    return folder


def test_the_newest_by_number_not_by_name(tmp_path):
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    (tmp_path / "checkpoints" / "checkpoint-last").mkdir()
    assert newest_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("missing", FILES)
def test_an_incomplete_checkpoint_is_named_and_passed_over(tmp_path, capsys, missing):
    whole = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, without=missing)
    assert newest_checkpoint(tmp_path) == whole
    assert missing in capsys.readouterr().out


def test_an_empty_file_counts_as_missing(tmp_path):
    folder = checkpoint(tmp_path, 10)
    (folder / "optimizer.pt").write_text("")
    assert newest_checkpoint(tmp_path) is None


def test_resume_never_auto_and_path(tmp_path):
    assert resume_point(tmp_path, "auto") is None
    whole = checkpoint(tmp_path, 10)
    assert resume_point(tmp_path, "never") is None
    assert resume_point(tmp_path, "auto") == whole
    assert resume_point(tmp_path, str(whole)) == whole
    with pytest.raises(UserError, match="there is no such checkpoint folder"):
        resume_point(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        resume_point(tmp_path / "other", str(whole))
    torn = checkpoint(tmp_path, 20, without="optimizer.pt")
    with pytest.raises(UserError, match=r"incomplete, it has no optimizer\.pt"):
        resume_point(tmp_path, str(torn))
