"""Which checkpoint a run goes on from."""

import copyreg
import json
import os

import pytest
import torch

from llm_qa.console import UserError
from llm_qa.training.checkpoint.manifest import _render, write_manifest
from llm_qa.training.checkpoint.resume import (
    HARMLESS,
    all_checkpoints,
    check_layout,
    invalid_reasons,
    layout,
    newest_checkpoint,
    resume_point,
    set_later_aside,
    store_zero_stage_by_value,
)
from llm_qa.training.strategy import Strategy

FILES = ("trainer_state.json", "README.md", "adapter_model.safetensors")
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def checkpoint(run, step, without=None):
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("x")
    for name in STATES:
        torch.save({}, folder / name)
    write_manifest(folder, {"step": step})
    if without:
        (folder / without).unlink()
    return folder


def test_the_newest_by_number_not_by_name(tmp_path):
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    (tmp_path / "checkpoints" / "checkpoint-last").mkdir()
    assert newest_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("missing", [*FILES, *STATES])
def test_an_incomplete_checkpoint_is_named_and_set_aside(tmp_path, capsys, missing):
    whole = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, without=missing)
    assert newest_checkpoint(tmp_path) == whole
    assert missing in capsys.readouterr().out


@pytest.mark.parametrize(
    ("never_saved", "told"),
    [
        ("optimizer.pt", "the optimizer's state"),
        ("scheduler.pt", "the scheduler's state"),
        ("rng_state.pth", "the random numbers' state"),
        ("trainer_state.json", "trainer_state.json"),
    ],
)
def test_a_checkpoint_without_a_state_of_training_is_not_whole(tmp_path, capsys, never_saved, told):
    """As `save_only_model` writes it: every file is as it was written, and training would not go on alike."""
    whole, poor = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    (poor / never_saved).unlink()
    write_manifest(poor, {"step": 20})
    assert invalid_reasons(poor) == [f"it was saved without {told}"]
    assert newest_checkpoint(tmp_path) == whole
    assert f"it was saved without {told}" in capsys.readouterr().out


def test_deepspeed_keeps_the_optimizer_in_shares_and_random_numbers_for_each_process(tmp_path):
    shared = zero_checkpoint(tmp_path, 10, 3, 2)
    assert invalid_reasons(shared) == []
    (shared / "rng_state_1.pth").unlink()
    write_manifest(shared, {"step": 10})
    assert invalid_reasons(shared) == ["it was saved without the random numbers' state of every process"]


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


def test_later_checkpoints_than_the_one_named_are_set_aside(tmp_path, capsys):
    first, second, third = (checkpoint(tmp_path, step) for step in (10, 20, 30))
    set_later_aside(third)
    assert not capsys.readouterr().out
    set_later_aside(first)
    assert all_checkpoints(tmp_path / "checkpoints") == [first]
    assert (tmp_path / "checkpoints" / "later-checkpoint-30.1" / "README.md").is_file()
    assert f"{second} is later than checkpoint-10 and set aside as later-checkpoint-20.1" in capsys.readouterr().out
    assert newest_checkpoint(tmp_path) == first


def signed(folder, change):
    """A manifest that someone else has made: its hash of itself is right."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    change(content)
    (folder / "manifest.json").write_text(_render(content))


HELD_BY = {"bytes": 0, "sha256": "x"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["files"].update({"/dev/zero": HELD_BY}),
        lambda content: content["files"].update({"../../../dev/zero": HELD_BY}),
        lambda content: content["files"].update({"\0": HELD_BY, "pipe": HELD_BY}),
        lambda content: content["files"].update({"README.md": None}),
        lambda content: content.pop("files"),
    ],
)
def test_a_manifest_cannot_lead_out_of_its_checkpoint_nor_hang(tmp_path, change):
    folder = checkpoint(tmp_path, 10)
    os.mkfifo(folder / "pipe")
    signed(folder, change)
    assert invalid_reasons(folder)
    assert newest_checkpoint(tmp_path) is None


def test_links_in_a_checkpoint_are_not_followed(tmp_path):
    folder, elsewhere = checkpoint(tmp_path, 10), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mp_rank_00_model_states.pt").write_text("x")
    (folder / "global_step10").symlink_to(elsewhere)
    (folder / "manifest.json").unlink()
    write_manifest(folder, {"step": 10})
    assert invalid_reasons(folder) == ["global_step10 is a link"]


def test_a_zero_stage_is_stored_without_a_call_that_could_reach_any_code(tmp_path, monkeypatch):
    from deepspeed.runtime.zero.config import ZeroStageEnum

    # As Python 3.11.2 has it.
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", lambda stage, protocol: (getattr, (ZeroStageEnum, stage.name)))
    torch.save(ZeroStageEnum(3), tmp_path / "stage.pt")
    found = torch.serialization.get_unsafe_globals_in_checkpoint
    assert "builtins.getattr" in found(tmp_path / "stage.pt")
    store_zero_stage_by_value()
    try:
        torch.save(ZeroStageEnum(3), tmp_path / "stage.pt")
    finally:
        copyreg.dispatch_table.pop(ZeroStageEnum, None)
    assert set(found(tmp_path / "stage.pt")) <= HARMLESS
    assert torch.load(tmp_path / "stage.pt", weights_only=False) is ZeroStageEnum(3)


@pytest.mark.parametrize("name", ["../elsewhere", "global_step9", "", "/tmp"])
def test_deepspeed_cannot_be_led_to_another_folder(tmp_path, name):
    folder = zero_checkpoint(tmp_path, 10, 2, 1)
    assert not invalid_reasons(folder)
    (folder / "latest").write_text(name)
    write_manifest(folder, {"step": 10})
    assert invalid_reasons(folder) == ["latest names a folder that is not in it"]


def zero_checkpoint(run, step, stage, processes):
    """A checkpoint as DeepSpeed lays it out."""
    folder = checkpoint(run, step)
    shares = folder / f"global_step{step}"
    shares.mkdir()
    (folder / "latest").write_text(shares.name)
    for name in STATES:
        (folder / name).unlink()
    for rank in range(processes):
        torch.save({}, folder / f"rng_state_{rank}.pth")
        torch.save({}, shares / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save({}, shares / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    write_manifest(folder, {"step": step})
    return folder


def test_who_wrote_a_checkpoint(tmp_path):
    assert layout(checkpoint(tmp_path, 1)) == (0, 1)
    assert layout(zero_checkpoint(tmp_path, 2, 2, 2)) == (2, 2)
    assert layout(zero_checkpoint(tmp_path, 3, 3, 4)) == (3, 4)


def test_another_engine_is_refused_and_another_number_of_processes_is_reshaped(tmp_path, capsys):
    plain, shared = checkpoint(tmp_path, 1), zero_checkpoint(tmp_path, 2, 2, 2)
    with pytest.raises(UserError, match="was made by one process or DDP and this is ZeRO-2, 2 processes"):
        check_layout(plain, Strategy(2, 2, zero_stage=2))
    with pytest.raises(UserError, match="was made by ZeRO-2 and this is one process:.*--resume never"):
        check_layout(shared, Strategy())
    assert not check_layout(shared, Strategy(2, 2, zero_stage=2))
    assert not capsys.readouterr().out
    assert check_layout(shared, Strategy(4, 4, zero_stage=2))
    assert not check_layout(plain, Strategy(4, 4))
    assert capsys.readouterr().out.count("goes on with") == 2
