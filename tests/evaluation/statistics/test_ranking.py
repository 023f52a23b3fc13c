"""The ranking: every model once, in order, with whom it clearly beats."""

import pytest

from evaluation.fixtures import make_rows
from llm_qa.evaluation.evaluations import Evaluation
from llm_qa.evaluation.metrics.catalogue import MEASURES
from llm_qa.evaluation.statistics.comparison import compare_predictions
from llm_qa.evaluation.statistics.ranking import compare_entries, most_tests, rank_entries
from llm_qa.evaluation.statistics.scoring import score_predictions


def evaluation(rows):
    return Evaluation(rows, score_predictions(rows, resamples=100))


@pytest.fixture
def ranked():
    """Two runs on one base, the second not trained at all, and the same copied answers for both."""
    base, good = evaluation(make_rows(tuned=False)), evaluation(make_rows(tuned=True))
    copied = [
        row | {"prediction": row["references"][0], "reference_bits": [None, None]} for row in make_rows(tuned=True)
    ]
    labels = [
        {"tuned": good, "base": base, "nearest": evaluation(copied)},
        {"tuned": evaluation(make_rows(tuned=False)), "base": base, "nearest": evaluation(copied)},
    ]
    entries = rank_entries(["good", "idle"], labels, [2.0, None])
    against = {
        i: compare_predictions(of["base"].rows, of["tuned"].rows, resamples=100, groups=False)
        for i, of in enumerate(labels)
    }
    return compare_entries(entries, against, {}, seed=0, resamples=100)


def test_every_model_once_best_first(ranked):
    entries = ranked.entries
    assert [entry.rank for entry in entries] == [1, 2, 3, 4]
    assert [entry.name for entry in entries] == ["nearest training answer", "good", "base of good, idle", "idle"]
    assert [entry.hours for entry in entries] == [None, 2.0, None, None]
    assert entries[2].runs == (0, 1)


def test_clearly_better_is_what_the_corrected_test_supports(ranked):
    nearest, good, base, idle = ranked.entries
    runs = ranked.against_base
    assert nearest.beats == (good.rank, idle.rank)
    assert good.beats == (base.rank, idle.rank)
    assert base.beats == idle.beats == (), "an untrained run is its own base"
    measures = sum(values["p_holm"] is not None for values in runs[0]["metrics"].values())
    assert ranked.tests == 2 * measures + 3 + 1, "runs against bases, three pairs by F1, one by bits too"
    assert ranked.tests <= most_tests(ranked.entries, 2, 0) == 2 * len(MEASURES) + 3 * 2
    for comparison in runs.values():
        for values in comparison["metrics"].values():
            assert values["p_holm"] is None or values["p_holm"] >= values["p_value"]


def test_duels_are_first_minus_second(ranked):
    assert [(pairwise.first, pairwise.second) for pairwise in ranked.pairwise_comparisons] == [(1, 2), (1, 4), (2, 4)]
    values = {entry.rank: entry.scores["metrics"]["character_f1"]["value"] for entry in ranked.entries}
    for pairwise in ranked.pairwise_comparisons:
        difference = pairwise.comparison["metrics"]["character_f1"]["difference"]
        assert difference == pytest.approx(values[pairwise.first] - values[pairwise.second])
    assert ranked.pairwise_comparisons[0].comparison["metrics"]["bits_per_character"]["p_holm"] is None


def test_different_copied_answers_are_told_apart():
    one = [row | {"prediction": row["references"][0]} for row in make_rows(tuned=True)]
    other = [row | {"prediction": row["references"][1]} for row in make_rows(tuned=True)]
    labels = [{"tuned": evaluation(make_rows(tuned=True)), "nearest": evaluation(rows)} for rows in (one, other)]
    names = {entry.name for entry in rank_entries(["a", "b"], labels, [None, None])}
    assert {"nearest training answer of a", "nearest training answer of b"} <= names
    assert {"a", "b"} <= names


def test_the_distribution_is_of_every_answer(ranked):
    entries = ranked.entries
    for entry in entries:
        scores = entry.question_f1()
        assert len(scores) == 24
        assert scores == sorted(scores)
        mean = entry.scores["metrics"]["character_f1"]["value"]
        assert sum(scores) / 24 == pytest.approx(mean)
