"""Stopping, counting and logging around the step."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from llm_qa.training.callbacks import NonFiniteError, RealTokens, StepLog, StopInTime, StopOnNonFinite

ARGUMENTS = SimpleNamespace(fp16=False, device=torch.device("cpu"), world_size=1)


def state(step: int, max_steps: int = 100) -> TrainerState:
    made = TrainerState()
    made.global_step, made.max_steps, made.epoch, made.stateful_callbacks = step, max_steps, step / 10, {}
    return made


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_stops_the_run_before_the_update(bad):
    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[1.0, bad], [0.0, 0.0]])
    with pytest.raises(NonFiniteError, match="Step 8: a gradient is not a finite number"):
        StopOnNonFinite().on_pre_optimizer_step(ARGUMENTS, state(7), TrainerControl(), model=model)
    model.weight.grad = torch.ones(2, 2)
    StopOnNonFinite().on_pre_optimizer_step(ARGUMENTS, state(7), TrainerControl(), model=model)


@pytest.mark.parametrize("key", ["loss", "eval_loss"])
def test_a_loss_that_is_no_number_stops_the_run(key):
    with pytest.raises(NonFiniteError, match="not a finite number"):
        StopOnNonFinite().on_log(ARGUMENTS, state(7), TrainerControl(), logs={key: float("nan")})


def test_the_budget_counts_from_the_start_of_the_process(monkeypatch):
    started = 1_000_000.0
    monkeypatch.setattr("psutil.Process.create_time", lambda self: started)
    clock = {"now": started}
    monkeypatch.setattr("llm_qa.training.callbacks.time.time", lambda: clock["now"])
    stop = StopInTime(max_hours=1.0)

    def step(at: float, seconds: float) -> TrainerControl:
        control = TrainerControl()
        clock["now"] = started + at
        stop.on_step_begin(ARGUMENTS, state(5), control)
        clock["now"] += seconds
        return stop.on_step_end(ARGUMENTS, state(5), control) or control

    assert not step(1000, 100).should_training_stop
    assert not step(3000, 100).should_training_stop
    stopped = step(3350, 100)  # 50 s are left of the hour once two steps of 100 s are kept back: none
    assert stopped.should_save
    assert stopped.should_training_stop
    assert stop.reason == "max_hours 1.0"
    stopped.should_evaluate = True
    stop.on_epoch_end(ARGUMENTS, state(5), stopped)
    assert not stopped.should_evaluate, "a validation pass would cost what is left of the hour"


def test_a_save_must_fit_into_the_budget_too(monkeypatch):
    started = 1_000_000.0
    monkeypatch.setattr("psutil.Process.create_time", lambda self: started)
    clock = {"now": started + 100}
    monkeypatch.setattr("llm_qa.training.callbacks.time.time", lambda: clock["now"])
    stop = StopInTime(max_hours=1.0)
    stop.on_step_begin(ARGUMENTS, state(5), TrainerControl())
    clock["now"] += 600
    stop.on_save(ARGUMENTS, state(5), TrainerControl())
    clock["now"] = started + 3100
    stop.on_step_begin(ARGUMENTS, state(6), TrainerControl())
    control = TrainerControl()
    stop.on_step_end(ARGUMENTS, state(6), control)
    assert control.should_training_stop


def test_the_first_signal_saves_and_the_second_ends_at_once():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        stop = StopInTime(None)
        stop.catch_signals()
        signal.raise_signal(signal.SIGTERM)
        control = TrainerControl()
        stop.on_step_end(ARGUMENTS, state(5), control)
        assert control.should_save
        assert control.should_training_stop
        assert stop.reason == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_the_last_step_is_not_an_early_stop():
    stop = StopInTime(None)
    stop.signal = "SIGTERM"
    control = TrainerControl()
    stop.on_step_end(ARGUMENTS, state(100), control)
    assert stop.reason is None
    assert not control.should_training_stop


class Model(torch.nn.Module):
    def forward(self, position_ids):
        return position_ids


def test_tokens_are_counted_in_training_only_and_padding_never():
    model, counter, seen = Model(), RealTokens(), state(1)
    counter.on_train_begin(ARGUMENTS, seen, TrainerControl(), model=model)
    model.train()
    model(position_ids=torch.tensor([[0, 1, 2, 0, 1, 0, 0]]))  # documents of 3 and 2 tokens, 2 of padding
    model(position_ids=torch.tensor([[0, 1]]))
    model.eval()
    model(position_ids=torch.tensor([[0, 1, 2]]))
    quiet, logging = TrainerControl(), TrainerControl(should_log=True)
    counter.on_step_end(ARGUMENTS, seen, quiet)
    assert seen.num_input_tokens_seen == 0
    counter.on_step_end(ARGUMENTS, seen, logging)
    assert seen.num_input_tokens_seen == 7
    counter.on_train_end(ARGUMENTS, seen, logging)
    model.train()
    model(position_ids=torch.tensor([[0, 1]]))
    counter.on_step_end(ARGUMENTS, seen, logging)
    assert seen.num_input_tokens_seen == 7


def test_the_log_has_one_object_a_line_and_goes_on_where_the_checkpoint_was(tmp_path, capsys):
    log = StepLog(tmp_path, flops_per_token=2e9, peak_flops=1e12)
    log.on_train_begin(ARGUMENTS, state(0), TrainerControl())
    for step in (10, 20):
        now = state(step)
        now.num_input_tokens_seen = step * 100
        log.on_log(ARGUMENTS, now, TrainerControl(), logs={"loss": 2.5, "learning_rate": 1e-4, "grad_norm": 0.5})
    log.on_log(ARGUMENTS, state(20), TrainerControl(), logs={"eval_loss": 3.0})
    saved = log.state()
    log.on_train_end(ARGUMENTS, state(20), TrainerControl())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 20]
    assert lines[1]["tokens"] == 2000
    assert lines[1]["loss"] == 2.5
    assert lines[1]["mfu"] == pytest.approx(lines[1]["tokens_per_second"] * 2e9 / 1e12, rel=1e-2)
    assert lines[2]["validation_loss"] == 3.0
    out = capsys.readouterr().out
    assert "step 20/100  epoch 2.00  loss 2.5000  lr 1.00e-04  grad 0.50" in out
    assert "validation loss 3.0000" in out

    resumed = state(10)
    resumed.stateful_callbacks["StepLog"] = {**saved, "attributes": {"seconds_before": 50.0}}
    again = StepLog(tmp_path)
    again.on_train_begin(ARGUMENTS, resumed, TrainerControl())
    again.on_train_end(ARGUMENTS, resumed, TrainerControl())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [10]
    assert again.elapsed() >= 50.0
