"""Which checkpoint a run goes on from."""

import pytest

from llm_qa.console import UserError
from llm_qa.training.checkpoints import check_layout, layout, newest_checkpoint, resume_point
from llm_qa.training.manifest import write_manifest
from llm_qa.training.strategy import Strategy

FILES = ("trainer_state.json", "README.md", "rng_state.json", "adapter_model.safetensors")


def checkpoint(run, step, without=None):
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("x")
    write_manifest(folder, {"step": step})
    if without:
        (folder / without).unlink()
    return folder


def test_the_newest_by_number_not_by_name(tmp_path):
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    (tmp_path / "checkpoints" / "checkpoint-last").mkdir()
    assert newest_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("missing", FILES)
def test_an_incomplete_checkpoint_is_named_and_set_aside(tmp_path, capsys, missing):
    whole = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, without=missing)
    assert newest_checkpoint(tmp_path) == whole
    assert missing in capsys.readouterr().out


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
    torn = checkpoint(tmp_path, 20, without="README.md")
    with pytest.raises(UserError, match=r"damaged \(README\.md is missing\)"):
        resume_point(tmp_path, str(torn))


def zero_checkpoint(run, step, stage, processes):
    """A checkpoint as DeepSpeed lays it out."""
    folder = checkpoint(run, step)
    shares = folder / f"global_step{step}"
    shares.mkdir()
    (folder / "latest").write_text(shares.name)
    for rank in range(processes):
        (shares / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_text("x")
        if stage == 3:
            (shares / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").write_text("x")
    return folder


def test_who_wrote_a_checkpoint(tmp_path):
    assert layout(checkpoint(tmp_path, 1)) == (0, 1)
    assert layout(zero_checkpoint(tmp_path, 2, 2, 2)) == (2, 2)
    assert layout(zero_checkpoint(tmp_path, 3, 3, 4)) == (3, 4)


def test_another_engine_is_refused_and_another_number_of_processes_is_reshaped(tmp_path, capsys):
    plain, shared = checkpoint(tmp_path, 1), zero_checkpoint(tmp_path, 2, 2, 2)
    with pytest.raises(UserError, match="was made by one process or DDP and this is ZeRO-2, 2 processes"):
        check_layout(plain, Strategy(2, 2, zero_stage=2))
    with pytest.raises(UserError, match="was made by ZeRO-2 and this is one process, 1 process.*--resume never"):
        check_layout(shared, Strategy())
    assert not check_layout(shared, Strategy(2, 2, zero_stage=2))
    assert not capsys.readouterr().out
    assert check_layout(shared, Strategy(4, 4, zero_stage=2))
    assert not check_layout(plain, Strategy(4, 4))
    assert capsys.readouterr().out.count("goes on with") == 2
