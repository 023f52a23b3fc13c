"""A save that is killed, refused or damaged: the older checkpoint stays, and the run ends where it would have."""

import errno
import json
import os
import random
import shutil
import zipfile
from concurrent.futures import wait

import pytest
import torch
import toy_training
from dying import die_at
from toy_training import STEPS, in_a_child, make_trainer, train

from llm_qa.console import UserError
from llm_qa.training.checkpoint import storage
from llm_qa.training.checkpoint.manifest import damage, read_manifest
from llm_qa.training.checkpoint.resume import all_checkpoints, invalid_reasons, newest_checkpoint, resume_point
from llm_qa.training.checkpoint.trainer_hooks import SavingOptions

NUMBERS = ("step", "loss", "learning_rate", "grad_norm", "tokens")


def outcome(run):
    """What must not depend on how often a run was disturbed: the weights, and the log but for the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    weights = {name: tensor.tolist() for name, tensor in torch.load(run / "final.pt", weights_only=True).items()}
    return weights, [{key: line[key] for key in NUMBERS} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert in_a_child(lambda: train(run)) == 0
    return run


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_finished_run_has_two_whole_checkpoints_and_nothing_else(undisturbed):
    assert names(undisturbed) == ["checkpoint-4", "checkpoint-6"]
    assert not any(invalid_reasons(path) for path in all_checkpoints(undisturbed / "checkpoints"))
    assert [line["step"] for line in outcome(undisturbed)[1]] == [3, 6]
    assert not list(undisturbed.rglob("training_args.bin"))


def test_its_states_carry_no_crc32_beside_the_manifest_and_other_files_do(undisturbed, tmp_path):
    torch.save(torch.ones(3), tmp_path / "other.pt")
    checkpoint = newest_checkpoint(undisturbed)
    assert not any(entry.CRC for entry in zipfile.ZipFile(checkpoint / "optimizer.pt").infolist())
    assert all(entry.CRC for entry in zipfile.ZipFile(tmp_path / "other.pt").infolist())
    assert "optimizer.pt" in read_manifest(checkpoint)["files"]
    assert torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]


def test_a_kill_between_any_two_steps_of_a_save_loses_nothing(undisturbed, tmp_path):
    """Every touch of a file from the save of step 4 to the end of the run is a moment to die at."""
    moments = finished = 0
    for moment in range(1, 1000):
        run = tmp_path / f"run-{moment}"

        def killed(run=run, moment=moment):
            die_at(moment, run, after="checkpoint-4")
            train(run)

        if in_a_child(killed) == 0:
            break
        moments += 1
        good = [path for path in all_checkpoints(run / "checkpoints") if not invalid_reasons(path)]
        assert good, f"moment {moment}: no intact checkpoint is left"
        assert good == all_checkpoints(run / "checkpoints"), f"moment {moment}: a checkpoint that is not whole"
        if moment % 4 == 0:
            finished += 1
            assert in_a_child(lambda run=run: train(run)) == 0
            assert outcome(run) == outcome(undisturbed), f"moment {moment}"
            assert names(run)[-2:] == ["checkpoint-4", "checkpoint-6"]  # killed before the last rotation: one more
            assert not [name for name in names(run) if not name.startswith("checkpoint-")]
        shutil.rmtree(run)
    print(f"{moments} moments, {finished} of them finished and compared, 0 lost")
    assert moments > 40


def test_a_run_that_stopped_between_two_logged_steps_logs_what_one_run_would(undisturbed, tmp_path):
    assert in_a_child(lambda: train(tmp_path)) == 0
    (tmp_path / "final.pt").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-6")
    assert in_a_child(lambda: train(tmp_path)) == 0, "goes on from step 4, with the loss of step 4 already summed"
    assert outcome(tmp_path) == outcome(undisturbed)


def files_of(checkpoint):
    return [path.relative_to(checkpoint) for path in sorted(checkpoint.rglob("*")) if path.is_file()]


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A copy of the finished run, to be damaged."""
    shutil.copytree(undisturbed, tmp_path / "run")
    return tmp_path / "run"


def test_every_file_deleted_or_cut_is_named_and_the_checkpoint_before_is_used(copy, capsys):
    newest, before = copy / "checkpoints" / "checkpoint-6", copy / "checkpoints" / "checkpoint-4"
    trials = 0
    for name in files_of(newest):
        whole = (newest / name).read_bytes()
        for kept in (None, 0, len(whole) // 2, len(whole) - 1):
            (newest / name).unlink()
            if kept is not None:
                (newest / name).write_bytes(whole[:kept])
            trials += 1
            assert damage(newest), f"{name} cut to {kept} bytes"
            assert newest_checkpoint(copy) == before
            aside = copy / "checkpoints" / "damaged-checkpoint-6.1"
            assert f"{newest} is damaged" in (said := capsys.readouterr().out)
            assert str(name) in said
            aside.rename(newest)
            (newest / name).write_bytes(whole)
    assert newest_checkpoint(copy) == newest
    print(f"{trials} files deleted or cut, 0 unseen")


def test_one_flipped_byte_anywhere_is_found(copy):
    rng, newest = random.Random(0), copy / "checkpoints" / "checkpoint-6"
    for trial in range(100):
        path = newest / rng.choice(files_of(newest))
        whole = path.read_bytes()
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        assert damage(newest), f"trial {trial}: {path.name}, byte {at}"
        path.write_bytes(whole)
    assert not damage(newest)


@pytest.mark.quick
def test_a_damaged_newest_checkpoint_changes_nothing_but_time(undisturbed, copy):
    (copy / "checkpoints" / "checkpoint-6" / "optimizer.pt").write_bytes(b"PK")
    (copy / "final.pt").unlink()
    assert in_a_child(lambda: train(copy)) == 0
    assert outcome(copy) == outcome(undisturbed)
    assert names(copy) == ["checkpoint-4", "checkpoint-6", "damaged-checkpoint-6.1"]


def test_a_strange_file_and_a_pickle_that_would_run_are_flaws(copy):
    newest = copy / "checkpoints" / "checkpoint-6"
    (newest / "optimizer.bin").write_bytes(b"x")
    assert damage(newest) == ["optimizer.bin does not belong to it"]
    (newest / "optimizer.bin").unlink()

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {copy}/ran",)

    torch.save({"state": Command()}, newest / "optimizer.pt")
    (newest / "manifest.json").unlink()
    storage.write_manifest(newest, {"step": 6})  # whoever can write a checkpoint can write its manifest
    assert invalid_reasons(newest) == ["optimizer.pt would run posix.system when it is loaded"]
    assert newest_checkpoint(copy).name == "checkpoint-4"
    assert not (copy / "ran").exists()


def test_a_named_checkpoint_that_is_damaged_is_refused(copy):
    newest = copy / "checkpoints" / "checkpoint-6"
    (newest / "scheduler.pt").unlink()
    with pytest.raises(UserError, match=r"the checkpoint is damaged \(scheduler\.pt is missing\)"):
        resume_point(copy, str(newest))


def test_when_no_checkpoint_is_whole_training_begins_anew_and_says_so(copy, capsys):
    for path in all_checkpoints(copy / "checkpoints"):
        (path / "manifest.json").write_text("{}")
    assert newest_checkpoint(copy) is None
    assert "training starts again" in capsys.readouterr().out


def full_disk(monkeypatch, steps):
    """posix_fallocate has no room for the saves of some steps."""
    real, calls = os.posix_fallocate, []

    def fallocate(descriptor, offset, length):
        calls.append(length)
        if len(calls) in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    return calls


def test_below_the_estimate_it_is_tried_all_the_same(undisturbed, tmp_path, monkeypatch, capsys):
    """The first save's size is a guess; what the disk really lacks it says itself."""
    full_disk(monkeypatch, {1})
    train(tmp_path)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    assert "Step 2: a checkpoint is estimated at 60 bytes and " in (said := capsys.readouterr().out)
    assert "are free: trying nevertheless" in said
    assert "no checkpoint could be saved" not in said
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_first_save_that_fails_is_followed_by_one_that_works_once_there_is_room(tmp_path, monkeypatch, capsys):
    """No room by the estimate, nor in truth, at step 2; by the estimate at step 4; room at step 6."""
    full_disk(monkeypatch, {1, 2})
    trainer = make_trainer(tmp_path)
    stage = trainer._stage

    def no_room_at_first(*arguments):
        if trainer.state.global_step == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stage(*arguments)

    monkeypatch.setattr(trainer, "_stage", no_room_at_first)
    trainer.train()
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    said = capsys.readouterr().out
    assert said.count("trying nevertheless") == 2
    assert said.count("no checkpoint could be saved") == 1


def test_a_full_disk_costs_one_checkpoint_and_the_next_save_tries_again(undisturbed, tmp_path, monkeypatch, capsys):
    needed = full_disk(monkeypatch, {2})
    train(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    said = capsys.readouterr().out
    assert f"Step 4: no checkpoint could be saved in {tmp_path}/checkpoints (No space left on device)" in said
    assert f"It needs {needed[1]:,} bytes and " in said
    assert "the next save tries again" in said
    assert needed[1] == sum(p.stat().st_size for p in (tmp_path / "checkpoints" / "checkpoint-2").iterdir())
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_disk_that_fills_up_in_the_middle_of_a_save(undisturbed, tmp_path, monkeypatch, capsys):
    real, calls = torch.save, []

    def save(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError(
                "[enforce fail at inline_container.cc:820] PytorchStreamWriter failed writing file data/0"
            )
        real(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        train(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    assert "PytorchStreamWriter failed writing" in capsys.readouterr().out
    assert outcome(tmp_path) == outcome(undisturbed)


def test_asked_to_stop_when_unsaved_it_stops(tmp_path, monkeypatch):
    full_disk(monkeypatch, {2})
    trainer = make_trainer(tmp_path, saving=SavingOptions(stop_on_error=True))
    with pytest.raises(UserError, match=r"Step 4: no checkpoint .* Make room, or correct the folder, and run the same"):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_vanished_folder_is_made_again_with_recipe_and_log(undisturbed, tmp_path):
    run = tmp_path / "run"
    trainer = make_trainer(run, saving=SavingOptions(run_files={run / "recipe.yaml": "seed: 1\n"}))
    step = trainer.training_step
    done = []

    def vanish(*arguments, **keywords):
        done.append(1)
        if len(done) == 5:
            wait([trainer.commit])
            shutil.rmtree(run)
        return step(*arguments, **keywords)

    trainer.training_step = vanish
    trainer.train()
    torch.save(trainer.model.state_dict(), run / "final.pt")
    assert names(run) == ["checkpoint-6"]
    assert (run / "recipe.yaml").read_text() == "seed: 1\n"
    assert outcome(run) == outcome(undisturbed)


def test_what_the_disk_gives_back_is_read_before_an_older_one_goes(tmp_path, monkeypatch, capsys):
    real = storage.flush

    def flip(path):
        real(path)
        for broken in path.glob("checkpoint-6/optimizer.pt"):
            broken.write_bytes(broken.read_bytes()[:-1] + b"\xff")

    monkeypatch.setattr(storage, "flush", flip)
    train(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert "it reads back differently from what was written: optimizer.pt has other bytes" in capsys.readouterr().out


def test_the_manifest_says_what_the_checkpoint_was_made_of(undisturbed):
    content = read_manifest(undisturbed / "checkpoints" / "checkpoint-6")
    assert content["about"]["step"] == STEPS
    assert set(content["files"]) >= {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert content["bytes"] == sum(entry["bytes"] for entry in content["files"].values())
    assert toy_training.STEPS == STEPS
