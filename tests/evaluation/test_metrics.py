"""The measures, worked by hand, and the same numbers through the local `evaluate` modules."""

import math
import random
import string

import pytest

from evaluation.fixtures import make_rows
from llm_qa.evaluation.metrics import MODULES, load_module
from llm_qa.evaluation.metrics.catalogue import MEASURES, definitions
from llm_qa.evaluation.metrics.measures import (
    bits_per_character,
    character_f1,
    chrf,
    exact_match,
    normalize_korquad,
)
from llm_qa.evaluation.metrics.morphemes import repetition
from llm_qa.evaluation.statistics.scoring import score_predictions, text_scores

SENTENCE = "실크 벽지는 완전히 말린 뒤 시공합니다."


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("'벽지'와 \"마루\"", "벽지 와 마루"),  # straight quotes become a space
        ("《시방서》 <도면> 〈상세도〉 (부록)", "시방서 도면 상세도 부록"),
        ("‘줄눈’은", "줄눈 은"),
        ("“줄눈”은", "“줄눈”은"),  # curly double quotes are not in the official list
        ("「줄눈」은", "「줄눈」은"),
        ("  LVT\t바닥재,\n시공! ", "lvt 바닥재 시공"),
        ("1.5m", "15m"),  # ASCII punctuation is dropped, not replaced
        ("가-나", "가나"),
        ("가(나)다", "가 나 다"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalisation_is_korquads(text, normalized):
    assert normalize_korquad(text) == normalized


def test_where_an_answer_breaks_its_lines_changes_no_measure():
    lines, joined = "1) 벽지를 말립니다.\n2) 풀을 바릅니다.\n\n- 끝", "1) 벽지를 말립니다. 2) 풀을 바릅니다. - 끝"
    assert text_scores(lines, (joined,)) == text_scores(joined, (joined,)) == text_scores(lines, (lines,))
    assert text_scores(lines, (joined,))["exact_match"] == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "match", "f1"),
    [
        ("벽지", "벽지", 1, 1.0),
        ("벽지.", "'벽지'", 1, 1.0),
        ("PVC 창호", "pvc  창호", 1, 1.0),
        # spaces count for EM and not for F1
        ("실크벽지", "실크 벽지", 0, 1.0),
        # 벽 and 지 shared: precision 2/3, recall 2/2
        ("벽지를", "벽지", 0, 2 * (2 / 3) * 1.0 / (2 / 3 + 1.0)),
        # bags: of three 가 one is shared; precision 1/3, recall 1/2
        ("가가가", "가나", 0, 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        # 1, 5, m, 이, 상 against 1, 5, m: Hangul, Latin and digits are one character each
        ("1.5M 이상", "15m", 0, 2 * (3 / 5) * 1.0 / (3 / 5 + 1.0)),
        # quotes and brackets become spaces, so what they divided stays divided for EM
        ("‘LVT’(바닥재)", "lvt 바닥재", 1, 1.0),
        ("《실크》벽지", "실크벽지", 0, 1.0),
        ("A/S 2년", "as 2년", 1, 1.0),
        ("70~80%", "70 80", 0, 1.0),
        # 3000원부가세별도 against 3000원: five of ten, five of five
        ("3,000원 (부가세 별도)", "3000원", 0, 2 * (5 / 10) * 1.0 / (5 / 10 + 1.0)),
        ("결로", "마루", 0, 0.0),
        ("", "벽지", 0, 0.0),
        ("   ", "벽지", 0, 0.0),
        # the official script: nothing shared is 0, also where both are empty after normalisation
        ("?!", "...", 1, 0.0),
    ],
)
def test_exact_match_and_character_f1_by_hand(prediction, reference, match, f1):
    assert exact_match(prediction, [reference]) == match
    assert character_f1(prediction, [reference]) == f1


def test_equal_to_a_slow_reading_of_the_definition():
    """Letter by letter, without translate tables or Counter, on random mixes of all that is treated specially."""

    def normalize(text):
        kept = ""
        for letter in "".join(" " if c in "'\"《》<>〈〉()‘’" else c for c in text).lower():
            kept += "" if letter in string.punctuation else letter
        return " ".join(kept.split())

    def f1(prediction, reference):
        left, right = (list("".join(normalize(text).split())) for text in (prediction, reference))
        rest, same = list(right), 0
        for letter in left:
            if letter in rest:
                rest.remove(letter)
                same += 1
        if same == 0:
            return 0
        precision, recall = 1.0 * same / len(left), 1.0 * same / len(right)
        return (2 * precision * recall) / (precision + recall)

    rng = random.Random(0)
    for _ in range(500):
        prediction, reference = (
            "".join(rng.choices("가나다라벽지 AbC 123.,-'\"《》<>〈〉()‘’“”\n\t", k=rng.randrange(25)))
            for _ in range(2)
        )
        assert exact_match(prediction, [reference]) == (normalize(prediction) == normalize(reference))
        assert character_f1(prediction, [reference]) == f1(prediction, reference)


def test_the_best_reference_counts():
    references = ["결로는 환기로 줄입니다", "벽지", "마루"]
    assert exact_match("벽지", references) == 1.0
    assert character_f1("벽지", references) == 1.0
    assert chrf("벽지", references) == pytest.approx(100)


def test_order_of_characters_does_not_count_for_f1_but_for_chrf():
    assert character_f1("지벽", ["벽지"]) == 1.0
    assert chrf("지벽", ["벽지"]) < 50


@pytest.mark.parametrize("text", [SENTENCE, "벽지", "가", "LVT 3.0mm 바닥재"])
def test_identical_korean_is_perfect(text):
    assert exact_match(text, [text]) == 1.0
    assert character_f1(text, [text]) == 1.0
    assert chrf(text, [text]) == pytest.approx(100)


def test_unrelated_korean_is_near_zero():
    assert character_f1("몰딩 줄눈", [SENTENCE]) == 0.0
    assert chrf("몰딩 줄눈", [SENTENCE]) < 5


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_answer_scores_zero(empty):
    assert (exact_match(empty, [SENTENCE]), character_f1(empty, [SENTENCE]), chrf(empty, [SENTENCE])) == (0, 0, 0)


def test_chrf_is_sacrebleus_chrf_plus_plus():
    from sacrebleu import sentence_chrf

    references = [SENTENCE, "벽지는 마른 뒤에 바릅니다."]
    answer = "벽지는 완전히 말린 뒤 바릅니다."
    assert chrf(answer, references) == sentence_chrf(answer, references, word_order=2).score
    assert "chrF2++" in definitions()["chrf"]


def test_bits_per_character_is_a_ratio_of_sums():
    assert bits_per_character([6.0, 4.0], [2, 3]) == 2.0  # not the mean of 3 and 1.33
    assert bits_per_character([6.0, None, math.nan, math.inf], [2, 5, 5, 5]) == 3.0  # unknown: out of both sums
    assert math.isnan(bits_per_character([None], [5]))


def test_the_local_evaluate_modules_load_offline_and_agree(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    predictions = ["실크 벽지", "결로", ""]
    references = [["실크벽지", "합지"], ["결로", "곰팡이", "들뜸"], ["벽지"]]
    pairs = list(zip(predictions, references, strict=True))
    korquad = load_module("korquad").compute(predictions=predictions, references=references)
    assert korquad == {
        "exact_match": sum(exact_match(p, r) for p, r in pairs) / 3,
        "character_f1": sum(character_f1(p, r) for p, r in pairs) / 3,
    }
    result = load_module("chrf").compute(predictions=predictions, references=references)
    assert result["chrf"] == sum(chrf(p, r) for p, r in pairs) / 3
    bits = load_module("bits_per_character").compute(predictions=[6.0, 4.0], references=[2, 3])
    assert bits == {"bits_per_character": 2.0}
    repeated = "벽지를 말린 뒤 시공합니다 " * 2
    form = load_module("form").compute(
        predictions=[*predictions[:2], " ", repeated], references=[*references, ["벽지"]]
    )
    assert form["length_ratio"] == (5 + 2 + 1 + len(repeated)) / (3 + (2 + 3 + 2) / 3 + 2 + 2)
    assert form["repetition"] == repetition(repeated) / 4 > 0
    assert form["empty_share"] == 1 / 4


def test_the_modules_give_the_reports_numbers():
    """Every module on the fixture's answers, against scores.json's values: means of the same, to rounding."""
    rows = make_rows(tuned=False) + [row | {"id": f"{row['id']}+"} for row in make_rows(tuned=True)]
    scores = score_predictions(rows, resamples=1)["metrics"]
    predictions, references = ([row[key] for row in rows] for key in ("prediction", "references"))
    found = {}
    for name in MODULES:
        pairs = {"predictions": predictions, "references": references}
        if name == "bits_per_character":
            pairs = {
                "predictions": [bits for row in rows for bits in row["reference_bits"]],
                "references": [count for row in rows for count in row["reference_characters"]],
            }
        found |= load_module(name).compute(**pairs)
    for key, values in scores.items():
        if key not in ("stopped_share", "embedding_cosine"):
            assert found[key] == pytest.approx(values["value"], abs=1e-12), key


def test_an_unknown_module_is_refused():
    with pytest.raises(ValueError, match="bleu"):
        load_module("bleu")
    assert MODULES


@pytest.mark.parametrize(
    ("key", "value", "text", "difference"),
    [
        ("character_f1", 0.1234, "0.123", "+0.123"),
        ("character_f1", -0.0001, "0.000", "0.000"),
        ("stopped_share", 0.5, "50.0%", "+50.0 pp"),
        ("bits_per_character", -1.5, "−1.500", "−1.500"),
        ("chrf", None, "–", "–"),
        ("chrf", math.nan, "–", "–"),
    ],
)
def test_numbers_are_printed_with_their_sign(key, value, text, difference):
    assert MEASURES[key].format(value) == text
    assert MEASURES[key].format_difference(value) == difference
