"""The first screen: a sentence that cannot be misread, three answers, and a rule for each thing to do next."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation.fixtures import make_evaluation, make_rows, make_run
from llm_qa.config.recipe import load_recipe, recipe_flags
from llm_qa.evaluation.metrics.catalogue import CHARACTER_F1
from llm_qa.evaluation.report.loading import load_report
from llm_qa.evaluation.report.samples import spread_samples
from llm_qa.evaluation.report.summary import answer_faults, next_steps, summarize, training_steps, verdict_sentence
from llm_qa.evaluation.statistics.comparison import BETTER, FEW, MIXED, UNCLEAR, WORSE

GOOD = {"empty_share": 0.0, "length_ratio": 1.0, "stopped_share": 1.0, "repetition": 0.0}


def run(kind=BETTER, *, f1=None, log=(), training=None, trained_on=0, base=True, different=40, **values):
    """What summary.py reads of a run with this verdict and these measures, forty questions in twenty groups."""
    scores = {
        "metrics": {key: {"value": value} for key, value in {**GOOD, **values}.items()},
        "questions": 40,
        "record_groups": 20,
        "different_answers": different,
    }
    return SimpleNamespace(
        verdict=SimpleNamespace(kind=kind),
        comparison={"metrics": {CHARACTER_F1: {"outcome": f1 or kind}}, "groups_needed": 23} if base else None,
        tuned=SimpleNamespace(scores=scores, contamination={"trained_on_questions": trained_on}),
        base=SimpleNamespace(rows=[]) if base else None,
        folder=SimpleNamespace(log=list(log), training=training or {"finished": True, "steps": 300}),
    )


def losses(*values):
    return [{"step": n, "epoch": n, "validation_loss": value} for n, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("run", "copy", "sentence"),
    [
        (
            run(length_ratio=0.25),
            UNCLEAR,
            "Better than its base, but not usable yet: its answers are about a quarter as long as the right ones and "
            "it is not shown to beat copying the nearest training answer.",
        ),
        (
            run(),
            WORSE,
            "Better than its base, and these measures find no fault in its answers: read some before you rely on them.",
        ),
        (
            run(UNCLEAR),
            "",
            "Not clearly different from its base; these measures find no fault in its answers, which says little about "
            "whether they are right.",
        ),
        (
            run(WORSE, empty_share=0.5, length_ratio=2.0),
            BETTER,
            "Worse than its base, and not usable yet: 50.0% of its answers are empty, its answers are 2.0 times as "
            "long as the right ones and copying the nearest training answer does better.",
        ),
        (
            run(MIXED, f1=UNCLEAR, stopped_share=0.5, repetition=0.4),
            "",
            "It finds the right answers more probable than its base does, but does not answer measurably better, and "
            "not usable yet: 50.0% of its answers do not end by themselves and its answers repeat themselves.",
        ),
        (
            run(MIXED, f1=BETTER, different=3),
            "",
            "Better than its base by one measure and worse by another, and not usable yet: it gives 3 different "
            "answers to 40 questions.",
        ),
        (
            run(FEW, trained_on=12),
            "",
            "Too few test records to say whether it is better than its base, and not usable yet: 12 of the 40 "
            "questions are in its training data.",
        ),
    ],
)
def test_the_verdict_is_one_sentence(run, copy, sentence):
    assert verdict_sentence(run, copy) == sentence


@pytest.mark.parametrize(
    ("run", "copy", "step"),
    [
        (run(trained_on=3), WORSE, "Test on questions that are not in the training data"),
        (run("", base=False), WORSE, "Evaluate the base too"),
        (run(FEW), WORSE, "a verdict needs 23 groups of records, and there are 20"),
        (run(training={"finished": False}), WORSE, "Finish the training"),
        (run(training={"finished": True, "steps": 6}), WORSE, "6 are few"),
        (run(log=losses(3.0, 2.0, 1.5)), WORSE, "Train longer"),
        (run(log=losses(3.0, 2.0, 2.5)), WORSE, "Do not train longer"),
        (run(stopped_share=0.5), WORSE, "--max-new-tokens"),
        (run(), UNCLEAR, "two or three ways of asking"),
        (run(UNCLEAR), WORSE, "Try another learning rate"),
        (run(), WORSE, "read the answers"),
    ],
)
def test_each_rule_says_what_to_do(run, copy, step):
    steps = next_steps(run, copy)
    assert len(steps) == 1
    assert step in steps[0]


def test_the_flags_that_are_proposed_exist():
    """A remedy that does not work is worse than none: train.py refuses some names of TrainingArguments."""
    runs = [
        run(training={"finished": True, "steps": 6}),
        run(log=losses(3.0, 2.0, 1.5)),
        run(stopped_share=0.5),
        run(FEW),
    ]
    flags = {flag for each in runs for step in next_steps(each, UNCLEAR) for flag in re.findall(r"--[a-z-]+", step)}
    assert flags == {"--num-train-epochs", "--global-batch-size", "--max-new-tokens", "--test"}
    load_recipe("scripts/recipes/tiny.yaml", recipe_flags(["--num-train-epochs", "8", "--global-batch-size", "8"]))
    assert '"--max-new-tokens"' in Path("scripts/evaluate.py").read_text(encoding="utf-8")


def test_all_empty_answers_are_said_once():
    assert answer_faults(run(empty_share=1.0, length_ratio=0.0).tuned.scores) == ["all of its answers are empty"]


def test_at_most_three_things_are_proposed():
    assert len(next_steps(run(FEW, trained_on=3, log=losses(3, 2, 1), stopped_share=0.1), UNCLEAR)) == 3


def test_a_validation_loss_that_stays_says_nothing():
    assert training_steps(losses(3.0, 2.0, 2.001), 300) == []
    assert training_steps(losses(3.0), 300) == []


def test_the_three_answers_are_of_the_highest_the_median_and_the_lowest_score():
    rows = make_rows(tuned=True)
    chosen = spread_samples(make_rows(tuned=False), rows)
    scores = sorted(sample.tuned_f1 for sample in spread_samples(None, rows).values())
    assert [sample.tuned_f1 for sample in chosen.values()] == scores[::-1]
    assert len(spread_samples(None, rows[:1])) == 1
    assert len(spread_samples(None, rows[:2])) == 2


def test_of_several_runs_the_best_is_summarised(tmp_path):
    runs = [make_run(tmp_path / "runs", name) for name in ("good", "poor")]
    make_evaluation(runs[1], make_rows(tuned=False), label="tuned")
    summary = summarize(load_report(runs))
    assert summary.verdict.startswith("good, the best of 2 tuned models: better than its base")
