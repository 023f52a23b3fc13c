"""Excel workbooks: cells as text, merged cells filled down, the sheet that is asked for, one sentence for the rest."""

import datetime
import io
import zipfile

import openpyxl
import pytest

from llm_qa.console import UserError
from llm_qa.data.readers import read_files
from llm_qa.data.readers.xlsx import cell_text

ROWS = [
    ["자주 묻는 질문", None, None, None],
    ["번호", "분류", "질문", "답변"],
    [1, "예약", "언제 여나요?", "평일 10시부터입니다.\n일요일은 쉽니다."],
    [2.0, None, "예약해야 하나요?", "아니요."],
    [None, None, None, None],
    [3, "예약", "얼마인가요?", 30000],
    [4, "예약", None, "카드는 안 됩니다."],
]


def workbook(tmp_path, rows=ROWS, merged=(), more=()):
    book = openpyxl.Workbook()
    book.active.title = "FAQ"
    for row in rows:
        book.active.append(row)
    for area in merged:
        book.active.merge_cells(area)
    for name, others in more:
        sheet = book.create_sheet(name)
        for row in others:
            sheet.append(row)
    path = tmp_path / "faq.xlsx"
    book.save(path)
    return path


def test_a_workbook_is_read_like_the_table_that_it_is(tmp_path):
    path = workbook(tmp_path, merged=["A1:D1", "B3:B4", "C6:C7"])
    result = read_files([path])
    assert [record.category for record in result.records] == ["예약"] * 4
    assert [record.id for record in result.records] == ["1", "2", "3", "4"]
    assert result.records[0].answers == ("평일 10시부터입니다.\n일요일은 쉽니다.",)
    assert [(r.questions, r.answers) for r in result.records[2:]] == [
        (("얼마인가요?",), ("30000",)),
        (("얼마인가요?",), ("카드는 안 됩니다.",)),
    ], "one question with two answers, as its merged cell says"
    assert result.rejected == []
    account = result.files[0]
    assert account["format"] == "long Excel"
    assert account["notes"] == [
        "sheet: FAQ",
        "merged cells: 2 cells filled in from above",
        "the header is in line 2, below 1 other row",
        "1 blank row skipped",
    ]


def test_a_sheet_is_asked_for_by_name_or_number(tmp_path):
    path = workbook(tmp_path, more=[("둘째", [["질문", "답변"], ["가?", "나"]])])
    assert "not read, name one with --sheet: 둘째" in read_files([path]).files[0]["notes"][0]
    for sheet in ("둘째", "2"):
        result = read_files([path], sheet=sheet)
        assert result.records[0].pairs() == [("가?", "나")]
        assert result.files[0]["notes"] == ["sheet: 둘째 (not read, name one with --sheet: FAQ)"]
    with pytest.raises(UserError, match=r"no sheet '셋째' \(--sheet\); it has FAQ, 둘째"):
        read_files([path], sheet="셋째")
    table = tmp_path / "a.csv"
    table.write_text("질문,답변\n가?,나\n", encoding="utf-8")
    with pytest.raises(UserError, match="--sheet 2 names a sheet of an Excel workbook, and no file is one"):
        read_files([table], sheet="2")


def test_where_the_first_sheet_is_a_cover_the_sentence_names_the_others(tmp_path):
    path = workbook(tmp_path, [["표지"]], more=[("둘째", [["질문", "답변"], ["가?", "나"]])])
    with pytest.raises(UserError, match=r"with --question-column, or another sheet with --sheet \(둘째\)\.$"):
        read_files([path])
    assert len(read_files([path], sheet="둘째").records) == 1
    with pytest.raises(UserError, match="--question-column.$"):
        read_files([workbook(tmp_path, [["표지"]])])


def test_values_are_texts_as_a_sheet_shows_them():
    values = [None, True, 3, 3.0, 2.5, "가", datetime.datetime(2025, 11, 1), datetime.date(2025, 11, 1)]
    assert list(map(cell_text, values)) == ["", "TRUE", "3", "3", "2.5", "가", "2025-11-01", "2025-11-01"]


def archive(parts):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04" + b"x" * 3000, "is a damaged zip or Excel file"),
        (archive({"train.csv": "질문,답변"}), "is a zip file, not an Excel workbook"),
        (archive({"xl/workbook.xml": "<x/>"}), "is not a readable Excel workbook"),
        (archive({"xl/workbook.xml": b"0" * 20_000}), "unpacks to more than"),
    ],
    ids=["damaged", "a zip", "no workbook inside", "a bomb"],
)
def test_what_is_no_workbook_is_one_sentence(tmp_path, monkeypatch, content, sentence):
    monkeypatch.setattr("llm_qa.data.readers.xlsx.LARGEST_UNPACKED_BYTES", 10_000)
    path = tmp_path / "faq.xlsx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        read_files([path])
    assert "\n" not in str(error.value)


def test_a_sheet_that_claims_endless_rows_or_merges_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_qa.data.readers.xlsx.MOST_ROWS", 10_000)
    path = workbook(tmp_path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    name = "xl/worksheets/sheet1.xml"
    endless = parts[name].replace(b'<row r="7"', b'<row r="999999999"')
    merges = b'<mergeCells count="1"><mergeCell ref="A3:XFD1048576"/></mergeCells>'
    wide = parts[name].replace(b"</sheetData>", b"</sheetData>" + merges)
    for changed, outcome in ((endless, "more than"), (wide, None)):
        path.write_bytes(archive({**parts, name: changed}))
        if outcome:
            with pytest.raises(UserError, match=outcome):
                read_files([path])
        else:
            assert {record.id for record in read_files([path]).records} == {"1", "1#2", "1#3"}
