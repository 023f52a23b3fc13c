"""Lines are broken by what they take on a screen."""

from llm_qa.widths import display_width, wrapped


def test_a_line_is_broken_between_words_by_the_columns_that_hangul_takes():
    text = "  학습률을 낮추거나 데이터를 늘리세요"
    lines = wrapped(text, 22).split("\n")
    assert lines == ["  학습률을 낮추거나", "    데이터를 늘리세요"]
    assert max(map(display_width, lines)) <= 22
    assert wrapped("short\nlines", 20) == "short\nlines"


def test_a_word_that_is_too_long_stays_whole():
    assert wrapped("see /a/very/long/path/of/a/file there", 12) == "see\n  /a/very/long/path/of/a/file\n  there"
