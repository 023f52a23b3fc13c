"""Tables as people keep them in a spreadsheet: titles, merged cells, blank rows, columns without a name."""

from pathlib import Path

import pytest

from llm_qa.console import UserError
from llm_qa.data.readers import read_files
from llm_qa.data.readers.rows import ColumnNames

SHARED_FAQ = Path(__file__).parents[3].parent / "shared" / "cases" / "faq"
FAQ = """번호,분류,질문,답변,
1,예약,언제 여나요?,"평일 10시부터입니다.
일요일은 쉽니다.",
2,,예약해야 하나요?,아니요.,
,,,,
7,접종,언제 시작하나요?,생후 6주부터입니다.,
8,,몇 번 하나요?,다섯 번입니다.,
8,,몇 번 하나요?,다섯 번입니다.,
"""


def read(tmp_path, text, columns=None, encoding="utf-8"):
    path = tmp_path / "faq.csv"
    path.write_bytes(text.encode(encoding))
    return read_files([path], columns)


def test_a_table_as_excel_saves_it_is_read_whole_and_what_was_done_is_said(tmp_path):
    result = read(tmp_path, FAQ, encoding="cp949")
    assert [record.category for record in result.records] == ["예약", "예약", "접종", "접종"]
    assert [record.id for record in result.records] == ["1", "2", "7", "8"]
    assert result.records[0].answers == ("평일 10시부터입니다.\n일요일은 쉽니다.",)
    assert [row.reason for row in result.rejected] == ["duplicate of faq.csv, line 7"]
    assert result.files[0]["notes"] == [
        "1 blank row skipped",
        "merged cells: 분류 is filled in from the row above in 3 of 5 rows",
    ]


def test_categories_that_are_simply_missing_stay_empty_and_are_counted(tmp_path):
    text = "분류,질문,답변\n시공,가?,1\n,나?,2\n시공,다?,3\n"
    result = read(tmp_path, text)
    assert [record.category for record in result.records] == ["시공", "", "시공"]
    assert result.files[0]["notes"] == ["분류 is empty in 1 of 3 rows"]
    result = read(tmp_path, "분류,질문,답변\n,가?,1\n시공,나?,2\n")
    assert [record.category for record in result.records] == ["", "시공"], "nothing stands above the first row"


def test_the_header_is_found_below_a_title(tmp_path):
    title = "자주 묻는 질문 (2025년 11월),,,,\n,,,,\n" + FAQ.replace("질문,답변,", "고객 질문,원장님 답변,비고", 1)
    result = read(tmp_path, title)
    assert result.records[0].questions == ("언제 여나요?",)
    assert result.files[0]["notes"] == [
        "the header is in line 3, below 1 other row",
        "question column: 고객 질문",
        "answer column: 원장님 답변",
        "1 blank row skipped",
        "merged cells: 분류 is filled in from the row above in 3 of 5 rows",
        "columns ignored: 비고",
    ]
    assert read(tmp_path, "행복동물병원 안내\n\n질문\t답변\n가, 나?\t다, 라\n").records[0].questions == ("가, 나?",)


def test_named_columns_find_the_header_below_a_title_too(tmp_path):
    text = "안내문,\n문의,회신\n가?,나\n"
    result = read(tmp_path, text, ColumnNames(("문의",), ("회신",)))
    assert result.records[0].pairs() == [("가?", "나")]
    with pytest.raises(UserError, match="no question column that is recognised among 문의, 회신: name it with --q"):
        read(tmp_path, text)


def test_two_columns_that_end_like_a_known_name_are_not_guessed_between(tmp_path):
    with pytest.raises(UserError, match="no question column .* among 고객 질문, 직원 질문, 답변"):
        read(tmp_path, "고객 질문,직원 질문,답변\n가?,나?,다\n")


def test_a_column_without_a_name_is_ignored_aloud_where_it_holds_something(tmp_path):
    assert read(tmp_path, "질문,답변,,\n가?,나,,메모\n").files[0]["notes"] == ["columns ignored: column 4"]
    assert read(tmp_path, "질문,답변\n가?,나,,\n").records[0].answers == ("나",), "blank cells beyond the header"


def test_the_input_of_an_instruction_is_the_context(tmp_path):
    result = read(tmp_path, "instruction,input,output\n요약하세요,원문 하나,요약 하나\n요약하세요,원문 둘,요약 둘\n")
    assert [record.context for record in result.records] == ["원문 하나", "원문 둘"]
    assert read(tmp_path, "input,output\n가?,나\n").records[0].questions == ("가?",), "there is no instruction"


def test_texts_that_differ_in_a_sign_are_not_duplicates(tmp_path):
    texts = ["1:3", "13", "-5도", "5도", "1.5mm", "15mm", "O", "o"]
    result = read(tmp_path, "질문,답변\n" + "".join(f"얼마인가요?,{text}\n" for text in [*texts, " 15mm "]))
    assert [record.answers[0] for record in result.records] == texts
    assert [row.reason for row in result.rejected] == ["duplicate of faq.csv, line 7"]


@pytest.mark.skipif(not SHARED_FAQ.exists(), reason="no ../shared/cases/faq beside the project")
@pytest.mark.parametrize("name", ["faq.csv", "faq_title.csv"])
def test_a_clinics_list_of_questions_is_read_whole(name):
    result = read_files([SHARED_FAQ / name])
    assert (len(result.records), len(result.rejected), result.files[0]["encoding"]) == (36, 2, "cp949")
    assert all(record.category for record in result.records)
    assert "2 blank rows skipped" in result.files[0]["notes"]
