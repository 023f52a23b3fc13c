"""Paired comparison and the verdict in words."""

import itertools
import json

import numpy as np
import pytest

from evaluation.fixtures import make_rows
from llm_qa.console import UserError
from llm_qa.evaluation.metrics.catalogue import MEASURES
from llm_qa.evaluation.statistics.comparison import (
    apply_holm,
    compare_predictions,
    groups_needed,
    holm,
    paired_differences,
    randomisation_p_values,
    trials_needed,
)
from llm_qa.evaluation.statistics.grouping import with_groups
from llm_qa.evaluation.statistics.scoring import group_sums, score_predictions
from llm_qa.evaluation.statistics.verdict import verdict


def compared(base, tuned, **more):
    comparison = compare_predictions(base, tuned)
    return comparison, verdict(comparison, score_predictions(tuned), **more)


def test_tuned_is_better_and_the_other_way_round():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    comparison, told = compared(base, tuned)
    f1, bits = comparison["metrics"]["character_f1"], comparison["metrics"]["bits_per_character"]
    assert f1["outcome"] == bits["outcome"] == told.kind == "better"
    assert f1["difference"] == f1["tuned"] - f1["base"] > 0
    assert 0 < f1["low"] <= f1["difference"] <= f1["high"]
    assert bits["high"] < 0  # lower is better
    assert f1["p_value"] < 0.01
    assert told.text.startswith("The tuned model is better: character F1 ")
    assert "12 records, 24 questions" in told.text
    assert "lower is better" in told.text

    back, told = compared(tuned, base)
    assert back["metrics"]["character_f1"]["outcome"] == back["metrics"]["bits_per_character"]["outcome"] == "worse"
    assert back["metrics"]["character_f1"]["low"] == pytest.approx(-f1["high"])
    assert told.kind == "worse"


def test_values_are_those_of_the_scores():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    comparison = compare_predictions(base, tuned)
    for rows, side in ((base, "base"), (tuned, "tuned")):
        scores = score_predictions(rows)
        for key, values in comparison["metrics"].items():
            assert values[side] == scores["metrics"][key]["value"]
        for name, part in comparison["groups"]["category"].items():
            assert part["metrics"]["chrf"][side] == scores["groups"]["category"][name]["metrics"]["chrf"]["value"]


def test_equal_models_are_not_distinguishable():
    rows = make_rows(tuned=True)
    comparison, told = compared(rows, make_rows(tuned=True))
    assert told.kind == "not distinguishable"
    comparison["metrics"].pop("embedding_cosine")  # nothing embedded these answers
    ratio = comparison["metrics"].pop("length_ratio")  # neither side of it is better, so it is not tested
    assert (ratio["difference"], ratio["p_value"], ratio["outcome"]) == (0, None, None)
    for values in comparison["metrics"].values():
        assert (values["difference"], values["low"], values["high"], values["p_value"]) == (0, 0, 0, 1)


def test_pairing_sees_what_the_two_intervals_hide():
    """The same small gain on every record is certain although records differ widely."""
    base, tuned = make_rows(tuned=True), make_rows(tuned=True)
    for i, (before, after) in enumerate(zip(base, tuned, strict=True)):
        before["reference_bits"] = [10.0 * (i + 1)] * 2
        after["reference_bits"] = [10.0 * (i + 1) - 0.5] * 2
    bits = compare_predictions(base, tuned)["metrics"]["bits_per_character"]
    one, other = (score_predictions(rows)["metrics"]["bits_per_character"] for rows in (base, tuned))
    assert one["low"] < other["high"]  # the intervals overlap
    assert bits["outcome"] == "better"


def test_deterministic_in_any_order_and_json():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    first = compare_predictions(base, tuned)
    assert compare_predictions(base[::-1], tuned[5:] + tuned[:5]) == first
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_a_verdict_needs_as_many_groups_as_the_pages_tests_ask_for():
    """p is at least 2^(1 - n): .05 takes 6 groups for one test, 9 for eleven, 10 for twenty-five."""
    assert [groups_needed(tests) for tests in (1, 11, 25)] == [6, 9, 10]
    assert [trials_needed(tests) for tests in (11, 700)] == [10_000, 28_000], "1 / 10,001 is too much for 700 tests"
    for groups, decided in ((8, False), (9, True)):
        base, tuned = (make_rows(tuned=tuned)[: 2 * groups] for tuned in (False, True))
        for row in (*base, *tuned):
            row["embedding_cosine"] = 0.5 + (row in tuned) / 4  # the eleventh test; every group is better
        comparison, told = compared(base, tuned)
        assert (comparison["record_groups"], comparison["tests"], comparison["groups_needed"]) == (groups, 11, 9)
        assert (told.kind == "too few records") is not decided
        outcomes = {values["outcome"] for values in comparison["metrics"].values()}
        assert ("better" in outcomes) is decided
        assert (outcomes == {"too few records", None}) is not decided
        assert decided or told.text.startswith("Too few records (9 needed here) for a verdict: character F1")


def test_a_reference_unknown_to_one_model_counts_for_neither():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    expected = [list(row["reference_bits"]) for row in base]
    tuned[0]["reference_bits"][0] = None
    bits = compare_predictions(base, tuned)["metrics"]["bits_per_character"]
    total = sum(map(sum, expected)) - expected[0][0]
    characters = sum(sum(row["reference_characters"]) for row in base) - base[0]["reference_characters"][0]
    assert bits["base"] == pytest.approx(total / characters)
    assert "leave out 1 of 48" in verdict(None, score_predictions(tuned)).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: base.pop(), "not of the same questions"),
        (lambda base: base[0].update(question_index=9), "not of the same questions"),
        (lambda base: base[0].update(references=["다른 답", "또"]), "other references"),
    ],
)
def test_predictions_of_other_questions_are_refused(change, message):
    base = make_rows(tuned=False)
    change(base)
    with pytest.raises(UserError, match=message) as error:
        compare_predictions(base, make_rows(tuned=True), name="runs/x")
    assert "--run runs/x --base" in str(error.value)


def test_the_verdict_tells_what_speaks_against_it():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    for row in tuned:
        row["stopped"] = False
    _, told = compared(base, tuned, finished=False)
    assert told.kind == "better"
    assert "had not finished" in told.text
    assert "24 of its 24 answers (100.0%) were cut." in told.text

    for row in base:
        row["prediction"] = row["references"][0]  # perfect answers, badly predicted references
    _, told = compared(base, tuned)
    assert told.kind == "mixed"

    for row in tuned:
        row["prediction"] = ""
    _, told = compared(base, tuned)
    assert "Every answer is empty." in told.text


def test_a_few_canned_answers_are_told():
    tuned = make_rows(tuned=True)
    for i, row in enumerate(tuned):
        row["prediction"] = ("시공합니다.", "말립니다.")[i % 2]
    _, told = compared(make_rows(tuned=False), tuned)
    assert "Its 24 answers are only 2 different texts." in told.text
    assert "different texts" not in compared(make_rows(tuned=False), make_rows(tuned=True))[1].text


def test_better_bits_alone_are_not_called_better_answers():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    for before, after in zip(base, tuned, strict=True):
        after["prediction"] = before["prediction"]
    _, told = compared(base, tuned)
    assert told.kind == "mixed"
    assert "does not answer measurably better" in told.text


def test_without_base_nothing_is_claimed():
    told = verdict(None, score_predictions(make_rows(tuned=True)))
    assert told.kind == ""
    assert "base was not evaluated" in told.text


def test_holm_by_hand():
    """Three tests: .01 x 3, .02 x 2 and .04 x 1 -> .03, .04, .04; never falling and at most 1."""
    assert holm([0.02, 0.01, 0.04]) == [0.04, 0.03, 0.04]
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_randomisation_test_is_that_of_every_possible_swap():
    base, tuned = make_rows(tuned=False)[:16], make_rows(tuned=True)[:16]  # 8 groups: every one of 256 swaps
    tuned[0]["prediction"] = base[0]["prediction"] = ""
    sums = group_sums(with_groups(base)), group_sums(with_groups(tuned))
    sampled = dict(zip(MEASURES, randomisation_p_values(*sums, seed=0), strict=True))
    for key in ("character_f1", "bits_per_character", "repetition"):
        column = list(MEASURES).index(key)
        tops, lows = (np.stack([getattr(s, name)[:, column] for s in sums]) for name in ("numerators", "denominators"))
        records = np.arange(tops.shape[1])

        def difference(swap, tops=tops, lows=lows, records=records):
            one, other = ((tops[side, records].sum() / lows[side, records].sum()) for side in (swap, 1 - swap))
            return abs(other - one)

        swaps = [np.array(bits) for bits in itertools.product((0, 1), repeat=len(records))]
        observed = difference(np.zeros(len(records), dtype=int))
        exact = np.mean([difference(swap) >= observed - 1e-9 for swap in swaps])
        assert sampled[key] == pytest.approx(exact, abs=1e-9), key


def test_more_tests_on_a_page_make_each_less_sure():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    alone = compare_predictions(base, tuned)
    weak = {**alone, "metrics": {"character_f1": {**alone["metrics"]["character_f1"], "p_value": 0.02}}}
    assert apply_holm([weak])[0]["metrics"]["character_f1"]["outcome"] == "better"
    page = apply_holm([weak, weak, weak])
    assert [c["metrics"]["character_f1"]["p_holm"] for c in page] == pytest.approx([0.06] * 3)
    assert [c["metrics"]["character_f1"]["outcome"] for c in page] == ["not distinguishable"] * 3
    assert page[0]["tests"] == 3
    untested = apply_holm([weak, alone], [("character_f1",), ()])[1]
    assert untested["metrics"]["chrf"]["p_holm"] is None
    assert untested["tests"] == 1


def test_an_answers_cosine_counts_only_where_both_have_one():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    for row in tuned:
        row["embedding_cosine"] = 0.9
    assert compare_predictions(base, tuned)["metrics"]["embedding_cosine"]["difference"] is None
    for row in base[:6]:
        row["embedding_cosine"] = 0.4
    cosine = compare_predictions(base, tuned)["metrics"]["embedding_cosine"]
    assert (cosine["difference"], cosine["groups"]) == (pytest.approx(0.5), 3)


def null_rows(groups: int, size: int, rng: np.random.Generator, *, grouped: bool) -> tuple[list[dict], list[dict]]:
    """Two equal models: bits differ by chance, and alike for the `size` records of one piece of knowledge."""
    both: tuple[list[dict], list[dict]] = ([], [])
    for group in range(groups):
        shared = rng.normal(size=2)
        for member in range(size):
            identity = f"{group:03d}-{member}"
            for rows, known in zip(both, shared, strict=True):
                bits = 20 + 2 * known + rng.normal() / 2
                about = {"group": f"{group:03d}" if grouped else identity, "category": "", "question_index": 0}
                given = {"prediction": "답", "stopped": True, "references": ["벽지"], "question": "왜?"}
                rows.append({"id": identity, **about, **given, "reference_bits": [bits], "reference_characters": [10]})
    return both


@pytest.mark.parametrize("size", [2, 5])
def test_equal_models_are_seldom_told_apart_where_records_share_texts(size):
    """Simulated null, 30 groups of pairs or fives: 5% false findings by groups, by p and by interval."""

    def false_findings(*, grouped: bool, times: int = 150) -> tuple[float, float]:
        rng, column, found = np.random.default_rng(1), list(MEASURES).index("bits_per_character"), []
        for seed in range(times):
            base, tuned = null_rows(30, size, rng, grouped=grouped)
            sums = group_sums(base), group_sums(tuned)
            p = randomisation_p_values(*sums, seed=seed, trials=400)[column]
            values = paired_differences(*sums, seed=seed, resamples=400)["metrics"]["bits_per_character"]
            found.append((p < 0.05, not values["low"] < 0 < values["high"]))
        return tuple(np.mean(found, axis=0))

    by_test, by_interval = false_findings(grouped=True)
    assert by_test <= 0.09, "5% and the chance of 150 simulations (two standard errors)"
    assert by_interval <= 0.11, "a percentile interval of 30 groups is a little narrow"
    assert min(false_findings(grouped=False)) > (0.11 if size == 2 else 0.2), (
        "counted one by one they are found different"
    )


def test_groups_decide_and_rows_of_an_older_version_find_theirs():
    base, tuned = make_rows(tuned=False), make_rows(tuned=True)
    assert compare_predictions(base, tuned)["record_groups"] == 12
    for rows in (base, tuned):
        for row in rows:
            row["references"] = [
                f"{row['category']}의 답입니다." if i == 0 else text for i, text in enumerate(row["references"])
            ]
            row["reference_characters"] = [len(text) for text in row["references"]]
    comparison, told = compared(base, tuned)
    assert (comparison["record_groups"], comparison["records"], comparison["questions"]) == (3, 12, 24)
    assert told.kind == "too few records"
    assert "12 records in 3 groups, 24 questions" in told.text
    named = [row | {"group": row["id"]} for row in tuned]
    assert compare_predictions(base, named)["record_groups"] == 12, "what evaluate.py wrote is believed"
