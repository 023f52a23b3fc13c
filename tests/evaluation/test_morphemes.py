"""ROUGE and repetition over morphemes: worked by hand, and against a slow reading of the definition."""

import random

import pytest

from llm_qa.evaluation.metrics import load_module
from llm_qa.evaluation.metrics.morphemes import common_length, morphemes, repetition, rouge_l, rouge_n

SENTENCE = "실크 벽지는 완전히 말린 뒤 시공합니다."


def test_a_spaced_word_is_several_morphemes_and_punctuation_is_none():
    assert morphemes("벽지를, 바릅니다!") == ("벽지", "를", "바르", "ᆸ니다")
    assert morphemes("LVT 3.0mm (PVC)") == ("lvt", "3.0", "mm", "pvc")
    assert morphemes("") == morphemes("?!") == ()


@pytest.mark.parametrize("text", [SENTENCE, "벽지", "LVT 3.0mm 바닥재"])
def test_identical_korean_is_perfect(text):
    """What rouge_score gives 0 for (huggingface/evaluate#256)."""
    assert rouge_n(text, [text], 1) == rouge_l(text, [text]) == 1.0
    if len(morphemes(text)) > 1:
        assert rouge_n(text, [text], 2) == 1.0


def test_unrelated_korean_is_zero():
    assert rouge_n("서울", ["부산"], 1) == rouge_l("서울", ["부산"]) == 0.0
    assert rouge_n("몰딩 줄눈", [SENTENCE], 1) == rouge_n("", [SENTENCE], 1) == rouge_l("", [SENTENCE]) == 0.0


def test_by_hand():
    """벽지·를·바르·ᆸ니다 against 벽지·를·떼·ᆸ니다: three of four shared, one of three pairs, all in order."""
    answer, reference = "벽지를 바릅니다", "벽지를 뗍니다"
    assert morphemes(reference) == ("벽지", "를", "떼", "ᆸ니다")
    assert rouge_n(answer, [reference], 1) == 3 / 4
    assert rouge_n(answer, [reference], 2) == pytest.approx(1 / 3)
    assert rouge_l(answer, [reference]) == 3 / 4
    # 벽지·마루 against 마루·벽지: all are shared, but only one in order
    assert rouge_n("벽지 마루", ["마루 벽지"], 1) == 1.0
    assert rouge_l("벽지 마루", ["마루 벽지"]) == 1 / 2
    # the best reference counts; precision 1, recall 1/2
    assert rouge_n("벽지", ["결로", "벽지 마루"], 1) == pytest.approx(2 / 3)


def test_the_longest_common_subsequence_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(300):
        one, other = (rng.choices("가나다라", k=rng.randrange(12)) for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, left in enumerate(one, 1):
            for j, right in enumerate(other, 1):
                longer = max(table[i - 1][j], table[i][j - 1])
                table[i][j] = table[i - 1][j - 1] + 1 if left == right else longer
        assert common_length(one, other) == table[-1][-1]


def test_repetition_counts_fours_that_came_before():
    assert repetition("벽지를 바릅니다") == 0.0  # one four
    # 8 morphemes make 5 fours; the last repeats the first
    assert repetition("벽지를 바릅니다 벽지를 바릅니다") == pytest.approx(1 / 5)
    assert repetition("") == repetition("벽지") == 0.0
    assert repetition("벽 " * 50) > 0.9


def test_a_lone_surrogate_is_survived():
    assert rouge_n("벽지\ud800", ["벽지"], 1) > 0


def test_the_local_evaluate_module_agrees(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    predictions, references = [SENTENCE, "서울"], [[SENTENCE, "다른 답"], ["부산"]]
    result = load_module("rouge").compute(predictions=predictions, references=references)
    assert (result["rouge1"], result["rouge2"], result["rougeL"]) == (0.5, 0.5, 0.5)
    assert "kiwipiepy" in result["tokenizer"]
