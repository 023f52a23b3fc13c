"""The order of a run's callbacks: nothing that a step has left on the GPU is missing where a stop is asked for."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from llm_qa.config.recipe import make_recipe
from llm_qa.training.callbacks.non_finite import NonFiniteError
from llm_qa.training.callbacks.run_callbacks import build_callbacks


@pytest.fixture
def stopping(tmp_path):
    """(callbacks, state, the end of a step) of a run that a signal stops at a step that nothing else would save."""
    callbacks = build_callbacks(make_recipe({}), tmp_path, None, 1, seconds_to_save=lambda: 0.0)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    state, control = TrainerState(max_steps=10), TrainerControl()
    handler = CallbackHandler(callbacks.in_order(), torch.nn.Linear(1, 1), None, None, None)
    handler.on_train_begin(arguments, state, control)
    handler.on_step_begin(arguments, state, control)
    state.global_step, callbacks.stop.signal = 1, "SIGTERM"
    return callbacks, state, lambda: handler.on_step_end(arguments, state, control)


def test_the_tokens_of_the_step_are_counted_before_the_save_that_a_stop_asks_for(stopping):
    callbacks, state, end_step = stopping
    callbacks.tokens.pending = torch.tensor(7)
    assert end_step().should_save
    assert state.num_input_tokens_seen == 7


def test_a_gradient_that_is_not_finite_is_heard_of_before_the_save_that_a_stop_asks_for(stopping):
    callbacks, _, end_step = stopping
    written = SimpleNamespace(synchronize=lambda: None)
    callbacks.non_finite.asked = (torch.tensor(False), written, 1, [])
    with pytest.raises(NonFiniteError, match="Step 1: a gradient is not a finite number"):
        end_step()
