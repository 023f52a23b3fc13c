"""Which weights a run ends with, when it stops early, and that neither depends on how often it was disturbed."""

import errno
import os
import shutil

import pytest
import torch
from dying import die_at
from test_trainer_hooks import NUMBERS, names
from toy_training import in_a_child, make_trainer
from transformers.trainer_utils import EvalLoopOutput

from llm_qa import files
from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.models.precision import resolve_precision
from llm_qa.training.callbacks.best import BestCheckpoint, Kept, check_early_stopping, choose_best
from llm_qa.training.checkpoint.resume import newest_checkpoint
from llm_qa.training.checkpoint.trainer_hooks import SavingOptions
from llm_qa.training.strategy import Strategy
from llm_qa.training.trainer import fit_validation_steps, training_arguments

WORSE = {2: 1.0, 4: 2.0, 6: 3.0}  # validation losses by step


def trainer_with(run, losses, keep="best", early_stopping=None, **changes):
    """A toy trainer whose validation losses are given; it validates and saves every second step."""
    changes = {"eval_strategy": "steps", "eval_steps": 2, **changes}
    recipe = make_recipe({"keep": keep, "early_stopping": early_stopping})
    trainer = make_trainer(run, [BestCheckpoint(recipe)], SavingOptions(keep_best=keep == "best"), **changes)
    trainer.evaluation_loop = lambda *_, **__: EvalLoopOutput(
        None, None, {"eval_loss": losses[trainer.state.global_step]}, num_samples=8
    )
    return trainer


def train(run, losses, **changes):
    """Start or go on with a run, as scripts/train.py does; returns its trainer."""
    trainer = trainer_with(run, losses, **changes)
    checkpoint = newest_checkpoint(run)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    torch.save(trainer.model.state_dict(), run / "final.pt")
    return trainer


def outcome(run):
    """What must not depend on how often a run was disturbed: the weights it trained, and the log but for the clock."""
    numbers = (*NUMBERS, "validation_loss")
    weights = {name: tensor.tolist() for name, tensor in torch.load(run / "final.pt", weights_only=True).items()}
    return weights, [[line.get(key) for key in numbers] for line in files.read_jsonl(run / files.LOG)]


def test_the_best_checkpoint_stays_beside_the_newest_and_is_chosen(tmp_path):
    trainer = train(tmp_path, WORSE)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    best = tmp_path / "checkpoints" / "checkpoint-2"
    assert choose_best(trainer.state, tmp_path) == Kept(2, 1.0, best)


def test_keep_last_keeps_the_newest_as_ever(tmp_path):
    train(tmp_path, WORSE, keep="last")
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_the_last_weights_are_taken_as_they_are_when_they_are_the_best(tmp_path):
    trainer = train(tmp_path, {2: 3.0, 4: 2.0, 6: 1.0})
    assert choose_best(trainer.state, tmp_path) == Kept(6, 1.0, None)


def test_of_equals_the_earlier_one(tmp_path):
    assert choose_best(train(tmp_path, {2: 2.0, 4: 1.0, 6: 1.0}).state, tmp_path).step == 4


def test_without_a_validation_there_is_no_best(tmp_path):
    trainer = train(tmp_path, {}, eval_strategy="no")
    assert choose_best(trainer.state, tmp_path) is None


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best_aloud(tmp_path, capsys):
    trainer = train(tmp_path, WORSE, save_total_limit=3)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-2" / "model.safetensors").write_bytes(b"x")
    assert choose_best(trainer.state, tmp_path) == Kept(4, 2.0, checkpoints / "checkpoint-4")
    assert f"{checkpoints}/checkpoint-2 (validation loss 1.0000) is damaged (model.safetensors has" in (
        said := capsys.readouterr().out
    )
    assert "the next best is taken" in said
    (checkpoints / "checkpoint-4" / "optimizer.pt").unlink()
    assert choose_best(trainer.state, tmp_path) == Kept(6, 3.0, None)


def test_a_best_checkpoint_that_could_not_be_saved_is_missed_aloud(tmp_path, capsys):
    trainer = train(tmp_path, WORSE)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-2")
    assert choose_best(trainer.state, tmp_path) == Kept(6, 3.0, None)
    assert "step 2 had the lowest validation loss (1.0000) and has no checkpoint" in capsys.readouterr().out


def test_an_evaluation_between_two_saves_is_saved_when_it_is_the_best(tmp_path):
    losses = {1: 3.0, 2: 2.0, 3: 1.0, 4: 4.0, 5: 5.0, 6: 6.0}
    trainer = train(tmp_path, losses, eval_steps=1, save_steps=4)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-6"]
    assert choose_best(trainer.state, tmp_path).step == 3


def test_early_stopping_counts_evaluations_without_a_better_one(tmp_path, capsys):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 0.1, 6: 0.1}
    trainer = train(tmp_path, losses, eval_steps=1, save_steps=6, early_stopping=2)
    assert trainer.state.global_step == 4
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert choose_best(trainer.state, tmp_path).step == 2
    assert (
        "early stopping at step 4 of 6: the validation loss has not been below that of step 2 (1.0000) in 2 evaluations"
    ) in capsys.readouterr().out


def test_a_run_killed_after_its_early_stop_does_not_train_on(tmp_path):
    losses = {2: 1.0, 4: 2.0}
    whole = train(tmp_path, losses, early_stopping=1)
    again = train(tmp_path, losses, early_stopping=1)  # from checkpoint-4, as after a kill before the final save
    assert again.state.global_step == whole.state.global_step == 4
    assert torch.equal(again.model.line.weight, whole.model.line.weight)


def test_an_early_stop_whose_checkpoint_cannot_be_saved_ends_with_what_was_trained(tmp_path, monkeypatch, capsys):
    trainer = trainer_with(tmp_path, WORSE, early_stopping=1)
    stage = trainer._stage

    def full_at_the_end(*arguments):
        if trainer.state.global_step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stage(*arguments)

    monkeypatch.setattr(trainer, "_stage", full_at_the_end)
    trainer.train()
    assert "Step 4: no checkpoint could be saved" in (said := capsys.readouterr().out)
    assert "what was trained is saved now" in said
    assert choose_best(trainer.state, tmp_path).step == 2


@pytest.mark.parametrize(("losses", "early_stopping"), [(WORSE, None), ({2: 1.0, 4: 2.0}, 1)])
def test_kills_change_neither_the_weights_nor_the_choice(losses, early_stopping, tmp_path):
    """A kill at every eighth touch of a file from the save of step 2 on; the same command then ends alike."""
    undisturbed = tmp_path / "undisturbed"
    expected = choose_best(train(undisturbed, losses, early_stopping=early_stopping).state, undisturbed)
    kills = 0
    for moment in range(1, 1000, 8):
        run = tmp_path / f"run-{moment}"

        def killed(run=run, moment=moment):
            die_at(moment, run, after="checkpoint-2")
            train(run, losses, early_stopping=early_stopping)

        def again(run=run):
            chosen = choose_best(train(run, losses, early_stopping=early_stopping).state, run)
            assert (chosen.step, chosen.validation_loss) == (expected.step, expected.validation_loss)
            if chosen.checkpoint:
                best, theirs = chosen.checkpoint / "model.safetensors", expected.checkpoint / "model.safetensors"
                assert best.read_bytes() == theirs.read_bytes()

        if in_a_child(killed) == 0:
            break
        kills += 1
        assert in_a_child(again) == 0, f"moment {moment}"
        assert outcome(run) == outcome(undisturbed), f"moment {moment}"
        shutil.rmtree(run)
    assert kills > 3


def test_early_stopping_without_a_validation_loss_is_refused():
    recipe = make_recipe({"early_stopping": 3})
    check_early_stopping(recipe, validates=True)
    check_early_stopping(make_recipe({}), validates=False)
    with pytest.raises(UserError, match="early_stopping 3 needs a validation loss, .* leave out --early-stopping"):
        check_early_stopping(recipe, validates=False)


def test_trainers_own_words_for_the_best_are_refused_with_the_projects(tmp_path):
    for key in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
        with pytest.raises(UserError, match=f"{key} cannot be set: .*use keep"):
            make_recipe({key: "true"})
    recipe = make_recipe({"save_strategy": "best"})
    with pytest.raises(UserError, match="save_strategy best: set it to steps"):
        training_arguments(recipe, resolve_precision(recipe, None), Strategy(), tmp_path)


@pytest.mark.parametrize(
    ("keys", "packs", "expected"),
    [
        ({"num_train_epochs": 2}, 20, 8),  # 40 updates
        ({"max_steps": 12}, 20, 3),
        ({"max_steps": 3}, 20, 1),
        ({"num_train_epochs": 100}, 20, 100),
        ({"num_train_epochs": 2, "save_steps": 30}, 20, 30),
    ],
)
def test_a_short_run_is_validated_at_least_five_times_unless_it_says_how_often(keys, packs, expected, tmp_path):
    recipe = make_recipe(keys)
    arguments = training_arguments(recipe, resolve_precision(recipe, None), Strategy(), tmp_path)
    fit_validation_steps(arguments, recipe, packs)
    assert (arguments.save_steps, arguments.eval_steps) == (expected, expected)
