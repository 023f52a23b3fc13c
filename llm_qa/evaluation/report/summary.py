"""The first screen of the report, for people who decide: a verdict in one sentence, three answers, what to do next.

Rules over the scores that the report shows below; nothing is tested or computed anew here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_qa import files
from llm_qa.data.phrasings import PHRASINGS
from llm_qa.evaluation.metrics.catalogue import CHARACTER_F1, MEASURES, is_number
from llm_qa.evaluation.report.plots import training_curve
from llm_qa.evaluation.report.samples import Sample, spread_samples
from llm_qa.evaluation.statistics.comparison import BETTER, FEW, MIXED, UNCLEAR, WORSE
from llm_qa.evaluation.statistics.verdict import CANNED_FROM, CANNED_SHARE
from llm_qa.language import later, tr
from llm_qa.planning.figures import FEW_UPDATES

if TYPE_CHECKING:
    from llm_qa.evaluation.report.loading import Report, RunReport
    from llm_qa.evaluation.statistics.ranking import Entry

# An answer as long as its reference has a length ratio of 1; outside of these the difference is worth a sentence.
SHORT, LONG = 0.67, 1.5
UNENDED, EMPTY, REPEATED = (
    0.10,
    0.02,
    0.10,
)  # shares of answers, and of an answer's morphemes, from which they are named
FALLING, RISEN = 0.005, 0.02  # relative changes of the validation loss
OPENINGS = {
    BETTER: later("Better than its base"),
    WORSE: later("Worse than its base"),
    UNCLEAR: later("Not clearly different from its base"),
    FEW: later("Too few test records to say whether it is better than its base"),
    "": later("Not compared with its base"),
}
FRACTIONS = (
    (0.12, later("a tenth")),
    (0.3, later("a quarter")),
    (0.42, later("a third")),
    (0.6, later("half")),
    (SHORT, later("two thirds")),
)


@dataclass(frozen=True)
class Summary:
    """`verdict` is one sentence about the best tuned model; `examples` are three of its answers by what they are."""

    verdict: str
    examples: dict[str, Sample]
    steps: list[str]


def summarize(report: Report) -> Summary:
    """The first screen of a report: of its best tuned model, where it has several runs."""
    best = next(entry for entry in report.entries if entry.label == files.TUNED)
    run = report.runs[best.runs[0]]
    copies = [entry for entry in report.entries if entry.label == files.NEAREST]
    copy = copy_outcome(best, copies)
    sentence = verdict_sentence(run, copy)
    about = (
        [tr("{run}, the best of {count} tuned models", run=run.name, count=len(report.runs))]
        if len(report.runs) > 1
        else []
    )
    if run.tuned.held_out == PHRASINGS:
        about.append(tr("on trained facts, new wordings") if about else tr("On trained facts, new wordings"))
    if count := run.tuned.generation.get("retrieval"):
        records = tr("asked with up to {count} of the nearest training records before each question", count=count)
        about.append(records if about else records.capitalize())
    if about:
        sentence = f"{', '.join(about)}: {sentence[0].lower()}{sentence[1:]}"
    return Summary(
        sentence,
        spread_samples(run.base.rows if run.base else None, run.tuned.rows),
        next_steps(run, copy),
    )


def copy_outcome(best: Entry, copies: list[Entry]) -> str:
    """How copying the nearest training answer compares with a model: BETTER, WORSE, UNCLEAR, or '' if not measured."""
    if not copies:
        return ""
    if any(best.rank in copy.beats for copy in copies):
        return BETTER
    return WORSE if any(copy.rank in best.beats for copy in copies) else UNCLEAR


def verdict_sentence(run: RunReport, copy: str) -> str:
    """One sentence: against the base, then what speaks against using the model; `copy` is `copy_outcome`'s."""
    opening = _mixed(run) if run.verdict.kind == MIXED else tr(OPENINGS[run.verdict.kind])
    asked, faults = run.tuned.scores["questions"], []
    if trained := (run.tuned.contamination or {}).get("trained_on_questions"):
        faults.append(
            tr("{trained:,} of the {asked:,} questions are in its training data", trained=trained, asked=asked)
        )
    faults += answer_faults(run.tuned.scores)
    if copy in (BETTER, UNCLEAR):
        faults.append(
            tr("copying the nearest training answer does better")
            if copy == BETTER
            else tr("it is not shown to beat copying the nearest training answer")
        )
    if faults:
        if run.verdict.kind == BETTER:
            return tr("{opening}, but not usable yet: {faults}.", opening=opening, faults=_and(faults))
        return tr("{opening}, and not usable yet: {faults}.", opening=opening, faults=_and(faults))
    if run.verdict.kind == BETTER:
        return tr(
            "{opening}, and these measures find no fault in its answers: read some before you rely on them.",
            opening=opening,
        )
    return tr(
        "{opening}; these measures find no fault in its answers, which says little about whether they are right.",
        opening=opening,
    )


def _mixed(run: RunReport) -> str:
    assert run.comparison
    if run.comparison["metrics"][CHARACTER_F1]["outcome"] in (BETTER, WORSE):
        return tr("Better than its base by one measure and worse by another")
    return tr("It finds the right answers more probable than its base does, but does not answer measurably better")


def answer_faults(scores: dict[str, Any]) -> list[str]:
    """What is wrong with the answers as texts, each as a clause."""
    value = {key: values["value"] for key, values in scores["metrics"].items()}

    def over(key: str, least: float) -> bool:
        return is_number(value.get(key)) and value[key] >= least

    faults = []
    if over("empty_share", EMPTY):
        if value["empty_share"] == 1:
            return [tr("all of its answers are empty")]
        faults.append(
            tr("{share} of its answers are empty", share=MEASURES["empty_share"].format(value["empty_share"]))
        )
    ratio = value.get("length_ratio")
    if is_number(ratio) and ratio < SHORT:
        fraction = next(word for most, word in FRACTIONS if ratio < most)
        faults.append(tr("its answers are about {fraction} as long as the right ones", fraction=tr(fraction)))
    elif is_number(ratio) and ratio > LONG:
        faults.append(tr("its answers are {ratio:.1f} times as long as the right ones", ratio=ratio))
    stopped = value.get("stopped_share")
    if is_number(stopped) and 1 - stopped >= UNENDED:
        share = MEASURES["stopped_share"].format(1 - stopped)
        faults.append(tr("{share} of its answers do not end by themselves", share=share))
    if over("repetition", REPEATED):
        faults.append(tr("its answers repeat themselves"))
    if _canned(scores):
        faults.append(
            tr(
                "it gives {different:,} different answers to {asked:,} questions",
                different=scores["different_answers"],
                asked=scores["questions"],
            )
        )
    return faults


def _canned(scores: dict[str, Any]) -> bool:
    different, asked = scores.get("different_answers"), scores["questions"]
    return bool(different) and asked >= CANNED_FROM and different < CANNED_SHARE * asked


def next_steps(run: RunReport, copy: str, most: int = 3) -> list[str]:
    """Up to `most` sentences on what to do next, what matters most first."""
    scores, steps = run.tuned.scores, []
    if (run.tuned.contamination or {}).get("trained_on_questions"):
        steps.append(
            tr(
                "Test on questions that are not in the training data: scores on trained questions show what it "
                "memorised."
            )
        )
    if run.base is None:
        steps.append(tr("Evaluate the base too (evaluate.py --base), to see what training changed."))
    elif run.verdict.kind == FEW:
        assert run.comparison
        needed, there = run.comparison["groups_needed"], scores["record_groups"]
        steps.append(
            tr(
                "Hold out more test records: a verdict needs {needed:,} groups of records, and there are {there:,} "
                "(more data, or a larger --test of prepare_data.py).",
                needed=needed,
                there=there,
            )
        )
    if run.folder.training.get("finished") is False:
        steps.append(tr("Finish the training: the same command goes on from the last checkpoint."))
    else:
        steps += training_steps(run.folder.log, run.folder.training.get("steps"))
    stopped = scores["metrics"]["stopped_share"]["value"]
    if is_number(stopped) and 1 - stopped >= UNENDED:
        steps.append(
            tr(
                "Look at the answers that do not end: if they are good so far, give them more tokens (evaluate.py "
                "--max-new-tokens); if they go in circles, train longer."
            )
        )
    if copy in (BETTER, UNCLEAR) or run.verdict.kind in (UNCLEAR, WORSE, MIXED):
        steps.append(
            tr(
                "Add training data, with two or three ways of asking for each fact, or take a larger base model: so "
                "far it knows little that its training answers do not say word for word."
            )
            if copy in (BETTER, UNCLEAR)
            else tr("Try another learning rate, or a larger base model (make plan shows which fits your GPU).")
        )
    return steps[:most] or [tr("Let somebody who knows the subject read the answers: answers.xlsx lists all of them.")]


def training_steps(log: list[dict[str, Any]], updates: object) -> list[str]:
    """What the validation loss and the number of updates say about training for longer."""
    losses = [loss for _, loss in training_curve(log, "validation_loss")]
    if is_number(updates) and updates < FEW_UPDATES:
        return [
            tr(
                "Train for more updates: {updates:,} are few (a larger --num-train-epochs, or fewer sequences an "
                "update by a smaller --global-batch-size).",
                updates=updates,
            )
        ]
    if len(losses) < 2:
        return []
    if losses[-1] <= min(losses) and losses[-1] < losses[-2] * (1 - FALLING):
        return [tr("Train longer (--num-train-epochs): the validation loss was still falling when training ended.")]
    if losses[-1] > min(losses) * (1 + RISEN):
        return [
            tr(
                "Do not train longer: the validation loss rose again before the end, so more epochs memorise. More "
                "data, or a lower learning rate, can help."
            )
        ]
    return []


def _and(clauses: list[str]) -> str:
    if len(clauses) == 1:
        return clauses[0]
    return tr("{first} and {last}", first=", ".join(clauses[:-1]), last=clauses[-1])
