"""Training goes on while a checkpoint is made safe, and nothing counts on one before it is."""

import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch
from dying import die_at
from test_trainer_hooks import names, outcome, undisturbed  # noqa: F401  the fixture of a finished run
from toy_training import in_a_child, make_trainer, start_child, status_of, train
from transformers import TrainerCallback

from llm_qa.console import UserError
from llm_qa.training.callbacks.stopping import StopInTime
from llm_qa.training.checkpoint import storage, trainer_hooks
from llm_qa.training.checkpoint.resume import all_checkpoints, invalid_reasons
from llm_qa.training.checkpoint.trainer_hooks import SavingOptions

LONG = 30.0  # seconds: who waits in vain fails


class AtStep(TrainerCallback):
    """Does `work` at the end of a step."""

    def __init__(self, step, work):
        self.step, self.work = step, work

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.work(state, control)


def hold_back(monkeypatch, step) -> threading.Event:
    """The checkpoint of a step is not made safe before the returned event is set."""
    real, go_on = trainer_hooks.commit, threading.Event()

    def commit(staged, final, about):
        assert about["step"] != step or go_on.wait(LONG), "training waits for it"
        real(staged, final, about)

    monkeypatch.setattr(trainer_hooks, "commit", commit)
    return go_on


def spoil(monkeypatch, *steps):
    """The disk gives back other bytes than were written into the checkpoints of some steps."""
    real = storage.flush

    def flip(path):
        real(path)
        for step in steps:
            for broken in path.glob(f"checkpoint-{step}/optimizer.pt"):
                broken.write_bytes(broken.read_bytes()[:-1] + b"\xff")

    monkeypatch.setattr(storage, "flush", flip)


def test_training_goes_on_while_a_checkpoint_is_made_safe(undisturbed, tmp_path, monkeypatch):  # noqa: F811
    go_on, seen = hold_back(monkeypatch, 2), []
    trainer = make_trainer(tmp_path)

    def work(state, control):
        seen.extend(names(tmp_path))
        go_on.set()

    trainer.add_callback(AtStep(3, work))
    trainer.train()
    torch.save(trainer.model.state_dict(), tmp_path / "final.pt")
    assert seen == [".staging"]
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    assert outcome(tmp_path) == outcome(undisturbed)


def test_the_next_save_and_the_end_wait_until_the_last_one_is_safe(tmp_path, monkeypatch):
    real, order = trainer_hooks.commit, []

    def commit(staged, final, about):
        assert not threading.Event().wait(0.2)
        real(staged, final, about)
        order.append(f"{final.name} is safe")

    monkeypatch.setattr(trainer_hooks, "commit", commit)
    trainer = make_trainer(tmp_path)
    stage, finalize = trainer._stage, trainer_hooks.Trainer._finalize_training
    monkeypatch.setattr(trainer, "_stage", lambda *a: order.append(f"{trainer.state.global_step} begins") or stage(*a))
    monkeypatch.setattr(trainer_hooks.Trainer, "_finalize_training", lambda *a: order.append("the end") or finalize(*a))
    trainer.train()
    saves = [f"{n} begins,checkpoint-{n} is safe" for n in (2, 4, 6)]
    assert ",".join(order) == ",".join([*saves, "the end"])


def test_a_stop_waits_for_the_last_checkpoint_and_for_its_own(undisturbed, tmp_path, monkeypatch):  # noqa: F811
    go_on, stop = hold_back(monkeypatch, 2), StopInTime(None)
    trainer = make_trainer(tmp_path, save_total_limit=3)
    trainer.add_callback(AtStep(3, lambda *_: (setattr(stop, "signal", "SIGTERM"), go_on.set())))
    trainer.add_callback(stop)
    trainer.train()
    assert stop.reason == "SIGTERM"
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert not any(invalid_reasons(path) for path in all_checkpoints(tmp_path / "checkpoints"))
    assert in_a_child(lambda: train(tmp_path)) == 0
    assert outcome(tmp_path) == outcome(undisturbed)


def test_one_that_turns_out_bad_is_told_at_the_next_save_which_tries_again(
    undisturbed,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    spoil(monkeypatch, 4)
    train(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    said = capsys.readouterr().out
    assert "Step 4: no checkpoint could be saved in " in said
    assert "(it reads back differently from what was written: optimizer.pt has other bytes" in said
    assert "the next save tries again" in said
    assert outcome(tmp_path) == outcome(undisturbed)


def test_asked_to_stop_when_unsaved_it_waits_for_every_save_and_stops_at_once(tmp_path, monkeypatch):
    spoil(monkeypatch, 2)
    trainer = make_trainer(tmp_path, saving=SavingOptions(stop_on_error=True))
    with pytest.raises(UserError, match=r"Step 2: no checkpoint .* Make room, or correct the folder, and run the same"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert names(tmp_path) == []


def test_what_ends_the_thread_is_told_like_a_disk_s_refusal(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise MemoryError("no room to hash")

    with monkeypatch.context() as patched:
        patched.setattr("llm_qa.training.checkpoint.trainer_hooks.commit", broken)
        make_trainer(tmp_path).train()
    assert "Step 2: no checkpoint could be saved in " in (said := capsys.readouterr().out)
    assert "(MemoryError: no room to hash)" in said


def test_a_stop_whose_own_checkpoint_turns_out_bad_is_an_error(tmp_path, monkeypatch):
    spoil(monkeypatch, 3)
    stop, trainer = StopInTime(None), make_trainer(tmp_path)
    trainer.add_callback(AtStep(3, lambda *_: setattr(stop, "signal", "SIGTERM")))
    trainer.add_callback(stop)
    with pytest.raises(UserError, match=r"Step 3: no checkpoint could be saved .* run the same command again"):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_stop_is_no_error_when_only_the_checkpoint_before_was_bad(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 2)
    stop, trainer = StopInTime(None), make_trainer(tmp_path)
    trainer.add_callback(AtStep(3, lambda *_: setattr(stop, "signal", "SIGTERM")))
    trainer.add_callback(stop)
    trainer.train()
    assert "Step 2: no checkpoint could be saved" in capsys.readouterr().out
    assert names(tmp_path) == ["checkpoint-3"]


def test_a_save_of_the_schedule_gives_way_to_one_that_is_still_under_way(
    undisturbed,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    go_on, trainer = hold_back(monkeypatch, 2), make_trainer(tmp_path)
    trainer.patience_seconds = 0.01
    trainer.add_callback(AtStep(5, lambda *_: go_on.set()))
    trainer.train()
    torch.save(trainer.model.state_dict(), tmp_path / "final.pt")
    assert "Step 4: no checkpoint, as that of step 2 is still being flushed" in capsys.readouterr().out
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    assert outcome(tmp_path) == outcome(undisturbed)


def test_the_best_checkpoint_never_gives_way(tmp_path, monkeypatch):
    go_on = hold_back(monkeypatch, 2)
    trainer = make_trainer(tmp_path, saving=SavingOptions(keep_best=True), save_total_limit=3)
    trainer.patience_seconds = 0.01
    trainer.add_callback(AtStep(4, lambda state, _: state.log_history.append({"step": 4, "eval_loss": 1.0})))
    threading.Timer(0.5, go_on.set).start()
    trainer.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_what_a_stop_must_keep_back_is_a_slow_disk_at_first_then_the_slowest_save_and_the_one_under_way(
    tmp_path, monkeypatch
):
    go_on, trainer, seen = hold_back(monkeypatch, 4), make_trainer(tmp_path), []
    trainer.add_callback(AtStep(1, lambda *_: seen.append(trainer.seconds_to_save())))
    trainer.add_callback(AtStep(5, lambda *_: (seen.append(trainer.seconds_to_save()), go_on.set())))
    trainer.add_callback(AtStep(5, lambda *_: seen.append(trainer.save_seconds)))
    trainer.train()
    assert seen[0] == 5 * 12 / 100e6, "five numbers with two moments, at 100 MB/s"
    assert seen[1] == 2 * seen[2] > 0
    assert trainer.seconds_to_save() == trainer.save_seconds >= seen[2]


def test_an_error_in_training_finishes_the_checkpoint_on_its_way(tmp_path, monkeypatch):
    go_on, trainer = hold_back(monkeypatch, 2), make_trainer(tmp_path)

    def fail(*_):
        threading.Timer(0.3, go_on.set).start()
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.add_callback(AtStep(3, fail))
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]
    assert not invalid_reasons(tmp_path / "checkpoints" / "checkpoint-2")


def test_a_kill_while_training_is_ahead_of_the_checkpoint_goes_back_one_further(
    undisturbed,  # noqa: F811
    tmp_path,
):
    """Every touch of a file by the thread that makes checkpoint-4 safe while step 5 has been made."""
    moments = 0
    for moment in range(1, 1000):
        run = tmp_path / f"run-{moment}"

        def killed(run=run, moment=moment):
            real, ahead, trainer = trainer_hooks.commit, threading.Event(), make_trainer(run, save_total_limit=1)

            def commit(staged, final, about):
                if about["step"] == 4:
                    assert ahead.wait(LONG)
                    die_at(moment, run)
                real(staged, final, about)

            trainer_hooks.commit = commit
            trainer.add_callback(AtStep(5, lambda *_: ahead.set()))
            publish = trainer._publish

            def no_further(step, *more):
                done = publish(step, *more)
                if step == 4:
                    os._exit(0)
                return done

            trainer._publish = no_further
            trainer.train()

        if in_a_child(killed) == 0:
            break
        moments += 1
        good = [path.name for path in all_checkpoints(run / "checkpoints") if not invalid_reasons(path)]
        assert good == [path.name for path in all_checkpoints(run / "checkpoints")], f"moment {moment}"
        assert "checkpoint-2" in good or "checkpoint-4" in good, f"moment {moment}"
        if moment % 3 == 0:
            assert in_a_child(lambda run=run: train(run)) == 0
            assert outcome(run) == outcome(undisturbed), f"moment {moment}"
        shutil.rmtree(run)
    print(f"{moments} moments, 0 lost")
    assert moments > 20


def in_two_ranks(work) -> list[int]:
    """Do `work` in two forked processes that find each other; their exit codes in rank order."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])

    def child(rank):
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
        signal.alarm(60)  # a rank that takes another branch than the other hangs
        work(rank)

    children = [start_child(lambda rank=rank: child(rank)) for rank in (0, 1)]
    return [status_of(child) for child in children]


def test_two_ranks_leave_out_fail_and_end_alike(tmp_path):
    """The main process alone knows how its thread fares: a save gives way, one turns out bad, one is the last."""

    def work(rank):
        with pytest.MonkeyPatch.context() as patched:
            spoil(patched, 5)
            go_on = hold_back(patched, 3)
            trainer = make_trainer(tmp_path, save_steps=1, save_total_limit=9, ddp_backend="gloo")
            trainer.patience_seconds, impatient = LONG, 0.01 if rank == 0 else LONG
            trainer.add_callback(AtStep(4, lambda *_: setattr(trainer, "patience_seconds", impatient)))
            trainer.add_callback(AtStep(5, lambda *_: (go_on.set(), setattr(trainer, "patience_seconds", LONG))))
            trainer.train()
            assert trainer.unsettled is None
            assert trainer.last_bytes > 0
            (tmp_path / f"weights-{rank}").write_text(str(trainer.model.line.weight.tolist()))

    assert in_two_ranks(work) == [0, 0]
    assert Path(tmp_path / "weights-0").read_text() == Path(tmp_path / "weights-1").read_text()
    kept = [path.name for path in all_checkpoints(tmp_path / "checkpoints")]
    assert {"checkpoint-3", "checkpoint-6"} <= {*kept}
    assert not {"checkpoint-4", "checkpoint-5"} & {*kept}
