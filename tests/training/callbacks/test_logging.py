"""Stopping, counting and logging around the step."""

import json
from types import SimpleNamespace

import pytest
import torch
from toy_training import make_trainer
from transformers import TrainerControl, TrainerState

from llm_qa import files
from llm_qa.training.callbacks.logging import RealTokens, StepLog

ARGUMENTS = SimpleNamespace(fp16=False, device=torch.device("cpu"), world_size=1)


def state(step: int, max_steps: int = 100) -> TrainerState:
    made = TrainerState()
    made.global_step, made.max_steps, made.epoch, made.stateful_callbacks = step, max_steps, step / 10, {}
    return made


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
    assert "       step   epoch     loss      rate    grad     tok/s   MFU    GiB      ETA\n" in out
    assert "     20/100    2.00   2.5000  1.00e-04    0.50" in out
    assert "     20/100    2.00  validation loss 3.0000\n" in out

    resumed = state(10)
    resumed.stateful_callbacks["StepLog"] = {**saved, "attributes": {"seconds_before": 50.0}}
    again = StepLog(tmp_path)
    again.on_train_begin(ARGUMENTS, resumed, TrainerControl())
    again.on_train_end(ARGUMENTS, resumed, TrainerControl())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [10]
    assert again.elapsed() >= 50.0


def logged(run) -> list[int]:
    return [line["step"] for line in files.read_jsonl(run / files.LOG) if "loss" in line]


def test_the_last_step_is_logged_wherever_it_falls(tmp_path):
    make_trainer(tmp_path / "whole", logging_steps=4).train()
    assert logged(tmp_path / "whole") == [4, 6]
    make_trainer(tmp_path / "short", logging_steps=100).train()
    assert logged(tmp_path / "short") == [6]
    make_trainer(tmp_path / "quiet", logging_strategy="no").train()
    assert logged(tmp_path / "quiet") == []
