"""Rows that ask one question become one record; records that share a text are one group."""

import pytest

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.groups import connected, group_names, group_records, merge_same_questions
from llm_qa.data.preparation import prepare
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.preparation_summary import summary
from llm_qa.data.records import QARecord
from llm_qa.data.splits import load_split


def record(i, questions, answers, category="", context=""):
    return QARecord(f"R{i}", tuple(questions), tuple(answers), category, context)


def test_items_that_share_a_key_are_connected_also_through_others():
    assert connected([["a"], ["b"], ["b", "a"], ["c"], [], []]) == [0, 0, 0, 3, 4, 5]


def test_records_that_share_a_text_are_one_group_whatever_their_order():
    a, b = record(1, ["왜 들뜨나요?"], ["풀 때문입니다."]), record(2, ["왜들뜨나요 ?"], ["습기 때문입니다."])
    c, d = record(3, ["다른 질문"], ["습기 때문입니다"]), record(4, ["또 다른 질문"], ["그렇습니다."])
    assert group_records([d, c, b, a]) == [[d], [c, b, a]]
    assert group_names([d, c, b, a]) == group_names([a, b, c, d]) == {"R1": "R1", "R2": "R1", "R3": "R1", "R4": "R4"}
    assert group_names([a, b, c, d], by_answers=False)["R3"] == "R3"
    assert group_records([a, b, c, d], by_answers=False) == [[a, b], [c], [d]]


def test_rows_of_one_question_become_one_record_with_all_answers():
    rows = [
        record(1, ["왜?"], ["하나"]),
        record(2, ["언제?"], ["하나"]),
        record(3, ["왜?"], ["둘", "하나"], "시공"),
        record(4, ["왜?"], ["셋"], context="지문"),
        record(5, ["왜?", "언제?"], ["넷"]),
        record(6, ["언제?", "왜?"], ["다섯"]),
    ]
    merged, joined = merge_same_questions(rows)
    assert [(r.id, r.answers, r.category) for r in merged] == [
        ("R1", ("하나", "둘"), "시공"),
        ("R2", ("하나",), ""),
        ("R4", ("셋",), ""),
        ("R5", ("넷", "다섯"), ""),
    ], "another context, or only one question in common, is another record"
    assert joined == {"R1": ["R3"], "R5": ["R6"]}
    assert merge_same_questions(merged) == (merged, {})


@pytest.fixture
def one_pair_a_row(tmp_path):
    """40 facts of 2 questions and 5 answers, a pair a row, as a spreadsheet of pairs holds them; one row twice."""
    rows = [f"{i}번은 {q}?,{i}번의 {a}째 답입니다.\n" for i in range(40) for q in ("왜", "어떻게") for a in range(5)]
    path = tmp_path / "pairs.csv"
    path.write_text("질문,답변\n" + "".join(rows) + rows[0], encoding="utf-8")
    return path


def test_a_file_of_pairs_is_prepared_as_what_it_knows(one_pair_a_row, tmp_path):
    out = tmp_path / "out"
    manifest = prepare([one_pair_a_row], out, PreparationOptions())
    assert (manifest["rows_read"], manifest["kept"], manifest["rejected"], manifest["merged"]) == (401, 400, 1, 320)
    assert (manifest["groups"], manifest["largest_group"]) == (40, 2)
    records = {split: load_split(out, split) for split in files.SPLITS}
    assert sum(map(len, records.values())) == 80
    assert all(len(r.answers) == 5 for split in records.values() for r in split)
    facts = {split: {r.questions[0].split("번")[0] for r in members} for split, members in records.items()}
    assert len(facts["train"] | facts["validation"] | facts["test"]) == 40 == sum(map(len, facts.values()))
    told = summary(manifest, out)
    assert "merged: 320 rows repeat the questions of another, so 400 rows are 80 records" in told
    assert "80 records are 40 groups, the largest of 2" in told


def test_nothing_is_said_where_nothing_is_shared(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("질문,답변\n" + "".join(f"질문 {i}?,답 {i}.\n" for i in range(12)), encoding="utf-8")
    told = summary(prepare([path], tmp_path / "out", PreparationOptions()), tmp_path / "out")
    assert "merged" not in told
    assert "groups" not in told


def test_a_merged_record_that_cleaning_empties_is_as_many_rejected_rows(tmp_path):
    path = tmp_path / "raw.csv"
    rows = "".join(f"{i}번은 왜?,답 {i}입니다.\n" for i in range(12))
    signs = "".join(f"{'?' * i},{'!' * a}\n" for i in range(2, 40) for a in (1, 2, 3))
    path.write_text(f"질문,답변\n{rows}{signs}", encoding="utf-8")
    manifest = prepare([path], tmp_path / "out", PreparationOptions(cleaning="original", group_by="questions"))
    emptied = manifest["rejected_by_reason"]["nothing left after cleaning"]
    assert emptied > 30
    assert emptied % 3 == 0, "three rows a record"
    assert manifest["rows_read"] == manifest["kept"] + manifest["rejected"] == 126
    assert manifest["kept"] - manifest["merged"] == sum(item["records"] for item in manifest["splits"].values())
    assert len(files.read_jsonl(tmp_path / "out" / files.REJECTED)) == manifest["rejected"]


def test_one_question_alone_cannot_be_split(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("질문,답변\n" + "".join(f"왜?,답 {i}.\n" for i in range(12)), encoding="utf-8")
    with pytest.raises(UserError, match=r"1 records are too few"):
        prepare([path], tmp_path / "out", PreparationOptions())


def test_questions_on_one_passage_stay_together():
    a, b = (record(i, [f"질문 {i}?"], [f"답 {i}."], context="같은 지문") for i in (1, 2))
    assert group_records([a, b]) == [[a, b]]
