"""Normalisation, the original's cleaning with its damage, stopwords."""

import unicodedata
from pathlib import Path

import pytest

from llm_qa.console import UserError
from llm_qa.data.text import (
    LINE_BREAKS,
    Cleaning,
    leakage_key,
    normalize,
    normalize_lines,
    original_cleaning,
    read_stopwords,
    remove_function_words,
    remove_stopwords,
)

SENTENCE = "철골구조는 건물의 외벽에는 그다지 하중이 걸리지 않기 때문에 고층 건물의 건축이 가능합니다."
SHARED_STOPWORDS = Path(__file__).parents[2].parent / "shared" / "data" / "stopwords_ko.txt"


@pytest.fixture
def stopword_file(tmp_path):
    path = tmp_path / "stopwords.txt"
    path.write_text("않기 위하여\n때문에\n그다지\n등\n", encoding="utf-8")
    return path


def test_normalisation_composes_and_collapses_and_changes_nothing_else():
    assert normalize(unicodedata.normalize("NFD", "  벽지가\t들떴어요!\n 1.5m ")) == "벽지가 들떴어요! 1.5m"


def test_line_breaks_and_indentation_inside_a_text_stay():
    text = "\r\n 1)  벽지를\u3000바릅니다. \r\n\t- 합지\n  - 실크\n\n\n2) 말립니다.\u20283) 봅니다.\n \n"
    kept = "1) 벽지를 바릅니다.\n\t- 합지\n  - 실크\n\n\n2) 말립니다.\n3) 봅니다."
    assert LINE_BREAKS["keep"](text) == normalize_lines(text) == normalize_lines(kept) == kept
    assert LINE_BREAKS["join"](text) == "1) 벽지를 바릅니다. - 합지 - 실크 2) 말립니다. 3) 봅니다."


def test_comparable_texts_differ_in_more_than_spaces_and_signs():
    assert leakage_key("벽지가 들떴 어요?") == leakage_key("벽지가 들떴어요！")
    assert leakage_key("ＡＢ １") == leakage_key("ab1")
    assert leakage_key("벽지") != leakage_key("벽지가")
    assert leakage_key("?!") != leakage_key("...")


def test_original_trap_cleaning_flips_negation(stopword_file):
    cleaning = Cleaning.from_options("original", str(stopword_file))
    assert cleaning.answer(SENTENCE) == "철골구조는 건물의 외벽에는 하중이 걸리지 고층 건물의 건축이 가능합니다"


def test_original_trap_cleaning_joins_numbers():
    assert original_cleaning("폭은 1.5m, 두께 2~3mm(최대)") == "폭은 15m 두께 23mm최대"


def test_cleaning_joins_no_words_over_a_line_break(stopword_file):
    text = "1) 벽지\n2) 그다지 마루"
    assert Cleaning.from_options("original").answer(text) == "1 벽지 2 그다지 마루"
    assert Cleaning.from_options("none", str(stopword_file)).answer(text) == "1) 벽지\n2) 마루"


def test_original_cleaning_drops_jamo_and_hanja():
    assert original_cleaning("ㅋㅋ 漢字 Wall-paper 벽지\t") == "Wallpaper 벽지"


def test_original_stopwords_of_several_words_count_as_each_word(stopword_file):
    words = read_stopwords(stopword_file)
    assert {"않기", "위하여", "때문에"} <= words
    assert remove_stopwords("걸리지 않기 때문에", words) == "걸리지"


@pytest.mark.skipif(not SHARED_STOPWORDS.exists(), reason="no ../shared/data/stopwords_ko.txt beside the project")
def test_a_users_stopword_list_does_the_same_damage():
    assert remove_stopwords("걸리지 않기 때문에", read_stopwords(SHARED_STOPWORDS)) == "걸리지"


def test_the_default_leaves_the_sentence_alone():
    assert Cleaning.from_options().answer(SENTENCE) == SENTENCE


@pytest.mark.parametrize(
    ("scope", "question", "answer"),
    [("none", "그다지 왜", "그다지 네"), ("questions", "왜", "그다지 네"), ("all", "왜", "네")],
)
def test_stopword_scope(stopword_file, scope, question, answer):
    cleaning = Cleaning.from_options("none", str(stopword_file), scope)
    assert (cleaning.question("그다지 왜"), cleaning.answer("그다지 네")) == (question, answer)


def test_morpheme_stopwords_drop_particles_and_keep_negation():
    pytest.importorskip("kiwipiepy")
    kept = remove_function_words(SENTENCE)
    assert "않기 때문" in kept
    assert "외벽에는" not in kept
    assert "외벽" in kept
    assert remove_function_words("벽지를 바르지 않으면 안 됩니다.") == "벽지 바르지 않으면 안 됩니다."
    assert remove_function_words("문이 없다") == "문 없다"


def test_an_unreadable_stopword_file_names_the_flag(tmp_path):
    with pytest.raises(UserError, match="--stopwords .* cannot be read"):
        read_stopwords(tmp_path / "nowhere.txt")
