"""What --report-to gets: figures and texts, by transformers' own callbacks, after the run's own have added theirs."""

import pytest
from toy_training import make_trainer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_qa.training.callbacks import tracking
from llm_qa.training.callbacks.tracking import send_text, take_trackers, warn_of_sent_texts


class Tracker(TrainerCallback):
    def __init__(self):
        self.logged = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logged.append((state.global_step, dict(logs)))


def test_trackers_get_speed_and_memory_beside_the_loss(tmp_path):
    tracker = Tracker()
    make_trainer(tmp_path / "run", [tracker]).train()
    steps = {step: logs for step, logs in tracker.logged if "loss" in logs}
    assert steps.keys() >= {3, 6}
    for logs in steps.values():
        assert logs.keys() >= {"loss", "learning_rate", "tokens", "tokens_per_second", "peak_memory_gib"}
        assert logs["peak_memory_gib"] > 0


def test_trackers_are_taken_from_trainer_which_would_call_them_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_reporting_integration_callbacks", lambda names: [Tracker for _ in names])
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["tensorboard"])
    taken = take_trackers(arguments)
    assert taken.keys() == {"tensorboard"}
    assert arguments.report_to == []
    assert take_trackers(arguments) == {}


def test_texts_go_to_those_that_show_them():
    trackers = {"wandb": Tracker(), "tensorboard": Tracker(), "mlflow": Tracker()}
    send_text(trackers, None, TrainerState(global_step=7), TrainerControl(), {"sample_1": "왜? → 습기"})
    assert trackers["wandb"].logged == trackers["tensorboard"].logged == [(7, {"sample_1": "왜? → 습기"})]
    assert trackers["mlflow"].logged == []


def test_texts_that_leave_the_machine_are_announced(capsys):
    warn_of_sent_texts({"tensorboard": Tracker()}, 3)
    warn_of_sent_texts({"wandb": Tracker()}, 0)
    assert capsys.readouterr().out == ""
    warn_of_sent_texts({"wandb": Tracker()}, 3)
    assert "sends 3 validation questions with their answers" in capsys.readouterr().out


@pytest.mark.optional
def test_tensorboard_has_the_figures_and_the_texts(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["tensorboard"])
    trackers = take_trackers(arguments)
    trainer = make_trainer(tmp_path / "run", [*trackers.values()], eval_strategy="steps", eval_steps=3)
    trainer.train()
    send_text(trackers, trainer.args, trainer.state, trainer.control, {"sample_1": "왜? → 습기"})
    trackers["tensorboard"].tb_writer.close()
    found, texts = {}, {}
    for path in tmp_path.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [event.step for event in events.Scalars(tag)]
        for tag in events.Tags()["tensors"]:
            texts[tag] = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
    assert found["train/loss"][-2:] == found["train/tokens_per_second"][-2:] == found["train/peak_memory_gib"][-2:]
    assert found["eval/loss"] == [3, 6]
    assert texts["train/sample_1/text_summary"] == "왜? → 습기"


@pytest.mark.optional
def test_wandb_keeps_all_of_it_on_this_machine_when_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["wandb"])
    trackers = take_trackers(arguments)
    trainer = make_trainer(tmp_path / "run", [*trackers.values()])
    trainer.train()
    send_text(trackers, trainer.args, trainer.state, trainer.control, {"sample_1": "왜? → 습기"})
    import wandb

    wandb.finish()
    (kept,) = tmp_path.rglob("*.wandb")
    content = kept.read_bytes()
    for part in ("train/loss", "train/tokens_per_second", "train/peak_memory_gib", "왜? → 습기"):
        assert part.encode() in content or part.encode("unicode_escape") in content
