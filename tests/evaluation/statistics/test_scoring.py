"""score_predictions: values, clusters, determinism, refusals."""

import copy
import json
import math
import random

import numpy as np
import pytest

from evaluation.fixtures import make_rows
from llm_qa.console import UserError
from llm_qa.evaluation.metrics.catalogue import MEASURES
from llm_qa.evaluation.statistics.scoring import resampled_ratios, score_predictions


def row(record: str, index: int = 0, *, prediction: str = "벽지", category: str = "시공", **more) -> dict:
    return {
        "id": record,
        "group": record,
        "question_index": index,
        "question": "무엇인가요?",
        "category": category,
        "references": ["벽지", "마루"],
        "prediction": prediction,
        "stopped": True,
        "generated_tokens": 2,
        "reference_bits": [4.0, 2.0],
        "reference_characters": [2, 2],
    } | more


def test_values_by_hand():
    rows = [
        row("a", 0),
        row("a", 1, prediction="결로 곰팡이", stopped=False),
        row("b", 0, prediction="  ", reference_bits=[2.0, None]),
    ]
    scores = score_predictions(rows)
    values = {key: metric["value"] for key, metric in scores["metrics"].items()}
    assert values["exact_match"] == 1 / 3
    assert values["character_f1"] == 1 / 3
    assert values["stopped_share"] == 2 / 3
    assert values["empty_share"] == 1 / 3
    assert values["length_ratio"] == (2 + 6 + 2) / 6
    assert values["bits_per_character"] == (6 + 6 + 2) / (4 + 4 + 2)
    assert (scores["records"], scores["questions"], scores["references"]) == (2, 3, 6)
    assert scores["references_without_bits"] == 1


def test_every_number_has_its_records_and_an_interval_around_it():
    scores = score_predictions(make_rows(tuned=True))
    assert set(scores["groups"]["category"]) == {"마감재", "시공", "마감하자"}
    for part in (scores, *scores["groups"]["category"].values()):
        assert set(part["metrics"]) == set(MEASURES)
        assert part["metrics"].pop("embedding_cosine")["value"] is None  # nothing embedded these answers
        for metric in part["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"]
            assert (metric["groups"], metric["questions"]) == (part["record_groups"], part["questions"])
    assert sum(part["records"] for part in scores["groups"]["category"].values()) == scores["records"] == 12
    assert list(scores["groups"]["category"]) == ["마감재", "시공", "마감하자"]  # most records first


def test_same_digits_again_and_in_any_order():
    rows = make_rows(tuned=True)
    first = json.dumps(score_predictions(rows), ensure_ascii=False)
    random.Random(1).shuffle(rows)
    assert json.dumps(score_predictions(rows), ensure_ascii=False) == first
    assert json.dumps(score_predictions(rows, seed=1), ensure_ascii=False) != first


def test_scores_survive_json():
    scores = score_predictions(make_rows(tuned=False))
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_a_records_questions_are_drawn_together():
    """Ten paraphrases of each of 4 records tell no more than one of each: the interval must not shrink."""
    once = [row(f"r{i}", prediction="벽지" if i % 2 else "결로") for i in range(4)]
    often = [row(f"r{i}", j, prediction="벽지" if i % 2 else "결로") for i in range(4) for j in range(10)]
    few, many = (score_predictions(rows)["metrics"]["exact_match"] for rows in (once, often))
    assert (few["low"], few["high"]) == (many["low"], many["high"])


def test_the_bootstrap_agrees_with_the_normal_interval():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(400, 1))
    draws = np.concatenate(list(resampled_ratios(values, np.ones_like(values), seed=0, resamples=4000)))
    assert draws.shape == (4000, 1)
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.05)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.005)


def test_blocks_change_nothing(monkeypatch):
    """The draws do not depend on how many fit into a block of memory."""
    values = np.random.default_rng(0).random((50, 2))
    many = np.concatenate(list(resampled_ratios(np.tile(values, 400), np.ones((50, 800)), seed=5, resamples=300)))
    one = np.concatenate(list(resampled_ratios(values, np.ones((50, 2)), seed=5, resamples=300)))
    assert np.array_equal(many[:, :2], one)


def test_one_record_has_a_score_and_no_interval():
    metric = score_predictions([row("a")])["metrics"]["character_f1"]
    assert metric == {"value": 1.0, "low": None, "high": None, "groups": 1, "questions": 1}


def test_bits_that_are_not_known_or_not_finite_are_counted_out():
    rows = [row("a", reference_bits=[None, None]), row("b"), row("c", reference_bits=[math.nan, math.inf])]
    scores = score_predictions(rows)
    bits = scores["metrics"]["bits_per_character"]
    assert (bits["value"], bits["groups"], bits["questions"]) == (1.5, 1, 1)
    assert scores["references_without_bits"] == 4
    nothing = score_predictions([row("a", reference_bits=[None, None])])["metrics"]["bits_per_character"]
    assert nothing == {"value": None, "low": None, "high": None, "groups": 0, "questions": 0}


def test_no_category_at_all_gives_no_category_scores():
    assert score_predictions([row("a", category=""), row("b", category="")])["groups"].get("category") is None
    assert list(score_predictions([row("a", category=""), row("b")])["groups"]["category"]) == ["", "시공"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.clear(), "holds no predictions"),
        (lambda rows: rows.append(copy.deepcopy(rows[0])), "repeats question 0 of record a"),
        (lambda rows: rows[0].pop("prediction"), "has no valid prediction"),
        (lambda rows: rows[0].update(stopped="yes"), "has no valid stopped"),
        (lambda rows: rows[0].update(references=[]), "no reference answer"),
        (lambda rows: rows[0].update(references=["벽지", ""]), "no reference answer"),
        (lambda rows: rows[0].update(reference_bits=[1.0]), "not have one number of bits for each reference"),
        (lambda rows: rows[0].update(reference_bits=[1.0, "2"]), "bits that are not numbers"),
        (lambda rows: rows[1].update(category="마감재"), "a second category"),
        (lambda rows: rows.insert(0, ["not", "an", "object"]), "is not a JSON object"),
    ],
)
def test_wrong_predictions_are_refused(change, message):
    rows = [row("a", 0), row("a", 1)]
    change(rows)
    with pytest.raises(UserError, match=message):
        score_predictions(rows)
