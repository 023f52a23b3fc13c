"""Readers: formats, encodings, every row accounted for, nothing but success or one sentence."""

import codecs
import json
import os
import random
import time

import pytest

from llm_qa.console import UserError
from llm_qa.data.readers import read_files
from llm_qa.data.readers.rows import ColumnNames

WIDE = '''id,질문_1,질문_2,category,답변_1,답변_2,답변_3,답변_4,답변_5
TRAIN_000,면진장치가 뭐야?,면진장치란 무엇인가요?,건축구조,답 하나.,답 둘.,답 셋.,답 넷.,답 다섯.
TRAIN_001,"쉼표, 있는 질문?",다른 말로는?,마감재,"따옴표 ""안""",둘,셋,넷,NA
'''
KORQUAD = {
    "version": "KorQuAD_v1.0_train",
    "data": [
        {
            "title": "벽지",
            "paragraphs": [
                {
                    "context": "벽지는 1.5m 폭이다.",
                    "qas": [
                        {"id": "k-1", "question": "폭은?", "answers": [{"text": "1.5m", "answer_start": 4}] * 2},
                        {"id": "k-2", "question": "", "answers": [{"text": "벽지", "answer_start": 0}]},
                        {"id": "k-3", "question": "빠진 답?"},
                    ],
                }
            ],
        }
    ],
}


def write(tmp_path, text, name="data.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(tmp_path, text, **options):
    name, encoding = options.pop("name", "data.csv"), options.pop("encoding", "utf-8")
    result = read_files([write(tmp_path, text, name, encoding)], options.pop("columns", None), **options)
    assert result.rows_read == len(result.records) + len(result.rejected)
    return result


def test_the_original_wide_layout_loads_as_it_is(tmp_path):
    result = read(tmp_path, WIDE)
    first, second = result.records
    assert (first.id, first.category) == ("TRAIN_000", "건축구조")
    assert first.questions == ("면진장치가 뭐야?", "면진장치란 무엇인가요?")
    assert second.questions[0] == "쉼표, 있는 질문?"
    assert second.answers == ('따옴표 "안"', "둘", "셋", "넷", "NA"), "NA is an answer, not nothing"
    assert result.files[0]["format"] == "wide CSV"


def test_a_wide_record_gives_ten_pairs(tmp_path):
    assert [len(record.pairs()) for record in read(tmp_path, WIDE).records] == [10, 10]


@pytest.mark.parametrize(
    "header", ["Q,A,label", "question,answer,x", "질문,답변,비고", "Instruction,Output,x", "QUESTION,ANSWER,x"]
)
def test_long_csv_finds_sensible_names(tmp_path, header):
    result = read(tmp_path, f"{header}\n왜요?,그래서요.,0\n")
    assert result.records[0].pairs() == [("왜요?", "그래서요.")]
    assert result.records[0].category == "", "a label is a category only when a flag says so"
    assert result.files[0]["notes"] == [f"columns ignored: {header.split(',')[2]}"]


def test_columns_can_be_named(tmp_path):
    columns = ColumnNames(("물음",), ("대답",), category="label", id="번호")
    result = read(tmp_path, "번호,물음,대답,label\n7,왜요?,그래서요.,일상\n", columns=columns)
    assert (result.records[0].id, result.records[0].category) == ("7", "일상")
    with pytest.raises(UserError, match="has no column '없음' \\(--question-column\\); it has 번호, 물음"):
        read(tmp_path, "번호,물음,대답\n7,왜요?,그래서요.\n", columns=ColumnNames(("없음",), ("대답",)))
    with pytest.raises(UserError, match="no question column that is recognised among 번호, 물음"):
        read(tmp_path, "번호,물음,대답\n7,왜요?,그래서요.\n")


@pytest.mark.parametrize(
    ("encoding", "title"),
    [("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8 with BOM"), ("cp949", "cp949"), ("utf-16", "UTF-16")],
)
def test_encodings_are_told_and_named(tmp_path, encoding, title):
    result = read(tmp_path, WIDE, encoding=encoding)
    assert result.files[0]["encoding"] == title
    assert result.records[0].questions[0] == "면진장치가 뭐야?"


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_other_delimiters(tmp_path, delimiter):
    assert read(tmp_path, f"Q{delimiter}A\n왜, 요?{delimiter}네.\n").records[0].questions == ("왜, 요?",)


def test_jsonl_records_and_simple_pairs(tmp_path):
    lines = [
        {"id": "a", "category": "c", "questions": ["가?", "나?"], "answers": ["답"], "context": "지문"},
        {"question": "다?", "answer": "라"},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + '\n{"question": 3}\n[1]\n{broken\n'
    result = read(tmp_path, text, name="x.jsonl")
    assert [record.questions for record in result.records] == [("가?", "나?"), ("다?",)]
    assert result.records[0].context == "지문"
    assert [row.line for row in result.rejected] == [3, 4, 5]


def test_korquad_keeps_the_context(tmp_path):
    for text in (json.dumps(KORQUAD, ensure_ascii=False), json.dumps(KORQUAD, ensure_ascii=False, indent=1)):
        result = read(tmp_path, text, name="korquad.json")
        assert result.files[0]["format"] == "KorQuAD JSON"
        assert result.records[0].context == "벽지는 1.5m 폭이다."
        assert result.records[0].answers == ("1.5m",)
        assert [row.reason.partition(" ")[0] for row in result.rejected] == ["empty", "not"]


def test_every_row_that_is_not_kept_has_its_line_and_reason(tmp_path):
    text = (
        "질문,답변\n"
        "가?,답\n"
        "나?,답,셋째\n"
        ",답\n"
        "다?,  \n"
        "라?,\x01답\n"
        "\n"
        "가?,  답 \n"
        f"마?,{'길다 ' * 40}\n"
        '"바\n?",여러 줄\n'
        "사?,깨진 \ufffd 글자\n"
    )
    result = read(tmp_path, text, max_characters=100)
    assert [(row.line, row.reason) for row in result.rejected] == [
        (3, "wrong column count: 3 instead of 2"),
        (4, "empty question"),
        (5, "no answer"),
        (6, "control character or broken text (U+0001)"),
        (8, "duplicate of data.csv, line 2"),
        (9, "too long for the context: 121 characters, at most 100 (--max-characters)"),
        (12, "control character or broken text (U+FFFD)"),
    ]
    assert [record.questions for record in result.records] == [("가?",), ("바 ?",)]
    assert result.rows_read == 9


def test_a_comma_too_many_in_the_first_row_shifts_nothing(tmp_path):
    result = read(tmp_path, "질문,답변\n가?,답,하나 더\n나?,둘\n")
    assert [record.pairs() for record in result.records] == [[("나?", "둘")]]


def test_an_unclosed_quote_is_named_and_does_not_swallow_the_file_in_silence(tmp_path):
    result = read(tmp_path, '질문,답변\n가?,답\n나?,"열린 따옴표\n다?,셋\n"라" ?,넷\n마?,다섯\n')
    assert [record.questions for record in result.records] == [("가?",), ("다?",), ("마?",)]
    assert [row.line for row in result.rejected] == [3, 5]
    assert "not readable as CSV" in result.rejected[0].reason


def test_several_files_at_once_and_ids_stay_unique(tmp_path):
    one = write(tmp_path, "id,질문,답변\n1,가?,답\n", "one.csv")
    two = write(tmp_path, "id,질문,답변\n1,나?,둘\n,다?,셋\n", "two.csv")
    result = read_files([one, two])
    assert [record.id for record in result.records] == ["1", "1#2", "two-3"]
    assert [item["kept"] for item in result.files] == [1, 2]


def test_the_same_file_twice_is_all_duplicates(tmp_path):
    path = write(tmp_path, "질문,답변\n가?,답\n나?,둘\n")
    result = read_files([path, path])
    assert [row.reason for row in result.rejected] == ["duplicate of data.csv, line 2", "duplicate of data.csv, line 3"]


def test_a_column_cannot_be_question_and_answer(tmp_path):
    with pytest.raises(UserError, match="'Q' cannot be both"):
        read(tmp_path, "Q,A\n가?,답\n", columns=ColumnNames(("Q",), ("Q",)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"  \n ", "is empty"),
        (b"PK\x03\x04rest", "is a damaged zip or Excel file"),
        (b"\x1f\x8bxx", "is a gzip file"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (bytes(range(256)) * 4, "is neither UTF-8 nor cp949 text"),
        (b"\0" * 100, "is neither UTF-8 nor cp949 text"),
        ("질문,답변\n".encode(), "has a header but no rows"),
        ("질문,답변\n,\n".encode(), "has a header but no rows"),
        ("질문,답변\n?,\n".encode(), "None of the 1 rows can be used; the first, bad.csv, line 2: no answer"),
        (b'{"data": 3}', r"no question or answer among its keys \(data\), which --question-column and --answer-column"),
        (b"[1, 2]", "None of the 2 rows can be used; the first, .* not a JSON record"),
        (b'{\n"version": 3}', "without KorQuAD's"),
        (b'"', "no .*header|no question column"),
    ],
)
def test_a_file_that_is_not_what_it_claims_is_one_sentence(tmp_path, content, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read_files([write(tmp_path, content, "bad.csv")])
    assert "\n" not in str(error.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="nowhere.csv does not exist"):
        read_files([tmp_path / "nowhere.csv"])
    with pytest.raises(UserError, match="is a folder"):
        read_files([tmp_path])


def test_damaged_files_are_success_or_one_sentence_and_always_add_up(tmp_path):
    rng = random.Random(7)
    pairs = b'{"question": "q", "answer": "a"}\n' * 9
    sources = [WIDE.encode(), WIDE.encode("cp949"), json.dumps(KORQUAD).encode(), pairs]
    signs = [b'"', b",", b"\n", b"\0", b"\xff", codecs.BOM_UTF8, b"[" * 5000, b"{", b"\\ud800", "가".encode()]
    outcomes, refusals = {"read": 0, "refused": 0}, []
    for trial in range(300):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randint(0, 3)] = rng.choice(signs)
        path = write(tmp_path, bytes(data), f"t{trial}.csv")
        try:
            result = read_files([path])
        except UserError as error:
            outcomes["refused"] += 1
            refusals.append((path, str(error)))
        else:
            outcomes["read"] += 1
            assert result.rows_read == len(result.records) + len(result.rejected)
            json.dumps([record.to_json() for record in result.records], ensure_ascii=False).encode()
            json.dumps([row.to_json() for row in result.rejected], ensure_ascii=False).encode()
    assert min(outcomes.values()) > 20, outcomes
    assert all(str(path) in sentence or "can be used" in sentence for path, sentence in refusals)


def processor_seconds(function, *arguments):
    """Of this process alone: others on a busy machine do not count."""
    begin = time.process_time()
    function(*arguments)
    return time.process_time() - begin


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (lambda n: "id,질문,답변\n" + "".join(f"TRAIN,{i}번?,답 {i}.\n" for i in range(n)), 3_000),
        (lambda n: '질문,답변\n가?,답\n"\n' + 'a","b\n' * n, 8_000),
        (lambda n: "질문,답변\n가?,답\n나?," + "a" + "\u0301\u0316" * n + "\n", 40_000),
        (lambda n: "질문,답변\n가?,답\n" + "," * n + "\n", 150_000),
    ],
    ids=["one id in every row", "quotes that each line opens again", "endless combining marks", "a million columns"],
)
def test_time_is_linear_in_the_file_whatever_stands_in_it(tmp_path, text, size):
    """Each of these took minutes (quadratic), or would: four times the file is 4 times the time, or 16 times."""
    small, large = (
        min(processor_seconds(read_files, [write(tmp_path, text(n), f"{n}.csv")]) for _ in range(2))
        for n in (size, 4 * size)
    )
    assert large < 8 * small + 0.1, (small, large)


def test_equal_ids_are_numbered_also_where_a_number_is_taken(tmp_path):
    ids = ["a", "a#2", "a", "a", "a#2"]
    text = "id,질문,답변\n" + "".join(f"{name},{i}번?,답 {i}\n" for i, name in enumerate(ids))
    assert [record.id for record in read(tmp_path, text).records] == ["a", "a#2", "a#3", "a#4", "a#2#2"]


def test_after_a_quote_that_nothing_closes_every_line_is_a_row_again(tmp_path):
    text = '질문,답변\n나?,"열린 따옴표\n' + "".join(f"{i}번?,답 {i}\n" for i in range(3000)) + '"끝\n?",둘\n'
    result = read(tmp_path, text)
    assert len(result.records) == 3001
    assert [row.line for row in result.rejected] == [2]


def test_every_broken_part_of_a_korquad_file_is_a_rejected_row(tmp_path):
    good = KORQUAD["data"][0]["paragraphs"][0]
    paragraphs = [
        good,
        3,
        {"context": "지문"},
        {"context": "지문", "qas": "x"},
        {"qas": good["qas"]},
        {**good, "qas": [7]},
    ]
    data = [{"paragraphs": paragraphs}, "article", {"title": "t"}, {"paragraphs": []}]
    result = read(tmp_path, json.dumps({"data": data}, ensure_ascii=False), name="k.json")
    assert len(result.records) == 1
    assert result.rows_read == 3 + 5 + 2
    reasons = [row.reason for row in result.rejected]
    assert sum("a paragraph without context or list of qas" in reason for reason in reasons) == 4
    assert sum("an article without a list of paragraphs" in reason for reason in reasons) == 2


def test_columns_named_where_there_are_none(tmp_path):
    lines = '{"question": "가?", "answer": "답"}\n'
    columns = ColumnNames(("Q",), category="c")
    with pytest.raises(
        UserError, match=r"--question-column, --category-column names a column or key that data.csv \(JSONL\) does not"
    ):
        read(tmp_path, lines, columns=columns)
    table = write(tmp_path, "Q,A,c\n나?,둘,일상\n", "table.csv")
    result = read_files([table, write(tmp_path, lines, "x.jsonl")], columns)
    assert [record.category for record in result.records] == ["일상", ""], "they are for the CSV among the files"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="is a pipe or a device"):
        read_files([tmp_path / "pipe.csv"])
    with pytest.raises(UserError, match="is a pipe or a device"):
        read_files(["/dev/zero"])


def test_a_line_too_long_for_memory_costs_its_own_row(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_qa.data.readers.csv.LONGEST_LINE_CHARACTERS", 100)
    monkeypatch.setattr("llm_qa.data.readers.json.LONGEST_LINE_CHARACTERS", 100)
    long = "a" * 101
    for text in (f"질문,답변\n{long},답\n나?,둘\n", f'{{"question": "나?", "answer": "둘"}}\n{{"answer": "{long}"}}\n'):
        result = read(tmp_path, text)
        assert [record.questions for record in result.records] == [("나?",)]
        assert "a line of more than 100 characters" in result.rejected[0].reason
