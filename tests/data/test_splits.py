"""Which records go to which split, and reading a split from the disk."""

import tracemalloc
from dataclasses import replace

import pytest

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.groups import group_records
from llm_qa.data.records import QARecord
from llm_qa.data.splits import crossing_texts, load_split, open_split, split_records


def record(i, questions=None, answers=None, category="", context=""):
    return QARecord(
        f"R{i:04d}", tuple(questions or (f"질문 {i}?",)), tuple(answers or (f"답 {i}.",)), category, context
    )


def test_original_trap_paraphrases_never_cross_splits():
    records = [record(i, [f"질문 {i}?", f"다시 {i}?"], [f"답 {i}.", f"또 {i}."]) for i in range(50)]
    records += [record(100 + i, [f"질문 {i} ?"], [f"다른 답 {i}."]) for i in range(0, 50, 3)]
    splits = split_records(records, seed=3)
    assert crossing_texts(splits) == {"questions": 0, "answers": 0}
    assert sorted(r.id for s in splits.values() for r in s) == sorted(r.id for r in records)


def test_original_trap_no_validation_split():
    splits = split_records([record(i) for i in range(100)])
    assert {name: len(records) for name, records in splits.items()} == {"train": 80, "validation": 10, "test": 10}


def test_the_crossing_check_can_fail():
    splits = {"train": [record(1)], "test": [record(2, ["질문 1 ?"], ["답 1"])]}
    assert crossing_texts(splits) == {"questions": 1, "answers": 1}


def test_the_split_is_stratified_and_seeded_and_ignores_the_order_of_the_file():
    records = [record(i, category=("마감재", "시공")[i % 5 == 0]) for i in range(200)]
    splits = split_records(records, seed=1)
    for name, share in (("validation", 20), ("test", 20)):
        assert sum(r.category == "시공" for r in splits[name]) == share // 5
    again = split_records(records[::-1], seed=1)
    assert {r.id for r in again["test"]} == {r.id for r in splits["test"]}
    assert {r.id for r in split_records(records, seed=2)["test"]} != {r.id for r in splits["test"]}


def test_splits_can_be_left_out():
    splits = split_records([record(i) for i in range(10)], validation=0, test=0)
    assert [len(splits[name]) for name in files.SPLITS] == [10, 0, 0]


@pytest.mark.parametrize("count", range(3, 30))
def test_every_split_asked_for_gets_a_record(count):
    splits = split_records([record(i) for i in range(count)])
    assert all(splits[name] for name in files.SPLITS)


def test_too_few_records_and_one_giant_group_are_refused():
    with pytest.raises(
        UserError, match=r"2 records are too few for train \+ validation \+ test: give more data, or set"
    ):
        split_records([record(1), record(2)])
    yes = [record(i, answers=["네."]) for i in range(10)] + [record(i) for i in range(10, 14)]
    with pytest.raises(UserError, match=r"10 of 14 records share .*--group-by questions"):
        split_records(yes)
    assert len(split_records(yes, by_answers=False)["test"]) >= 1


def test_the_remedy_that_is_named_is_one_that_helps():
    yes_and_no = [record(i, answers=[("예", "아니요")[i % 2]]) for i in range(1000)]
    with pytest.raises(UserError, match="500 of 1,000 records share .*--group-by questions") as error:
        split_records(yes_and_no)
    assert "give more data" not in str(error.value)
    assert len(split_records(yes_and_no, by_answers=False)["test"]) == 100
    one_question = [record(i, ["같은 질문?"]) for i in range(10)]
    for by_answers in (True, False):
        with pytest.raises(UserError, match="give more data") as error:
            split_records(one_question, by_answers=by_answers)
        assert "--group-by" not in str(error.value)


def test_an_instruction_that_many_records_share_ties_none_together():
    """A chat's system message, or Alpaca's instruction with another input each time."""
    chats = [replace(record(i, context="너는 도우미다."), system="너는 도우미다.") for i in range(20)]
    tasks = [record(100 + i, ["요약하세요"], context=f"원문 {i}") for i in range(20)]
    splits = split_records([*chats, *tasks])
    assert [len(splits[name]) for name in files.SPLITS] == [32, 4, 4]
    assert crossing_texts(splits) == {"questions": 0, "answers": 0}
    same_start = [replace(chats[i], context="너는 도우미다.\n\n질문: 가?\n\n답변: 나") for i in (0, 1)]
    assert group_records(same_start) == [same_start]


def test_load_split_refuses_what_was_changed(tmp_path):
    path = files.split_file(tmp_path, "test")
    files.write_jsonl(path, [record(1).to_json()])
    with pytest.raises(UserError, match="is not prepared data"):
        load_split(tmp_path, "test")
    files.write_json(tmp_path / files.MANIFEST, {"sha256": {"test.jsonl": files.sha256_file(path)}})
    assert load_split(tmp_path, "test") == [record(1)]
    path.write_text(path.read_text(encoding="utf-8").replace("답", "덥"), encoding="utf-8")
    with pytest.raises(UserError, match="is not what prepare_data.py wrote"):
        load_split(tmp_path, "test")


def test_an_empty_split_is_named(tmp_path):
    path = files.split_file(tmp_path, "test")
    files.write_jsonl(path, [])
    files.write_json(tmp_path / files.MANIFEST, {"sha256": {"test.jsonl": files.sha256_file(path)}})
    assert load_split(tmp_path, "test", may_be_empty=True) == []
    with pytest.raises(UserError, match="has no records: prepare the data with --test above 0"):
        load_split(tmp_path, "test")


def test_an_open_split_is_read_one_record_at_a_time_and_again(tmp_path):
    path = files.split_file(tmp_path, "train")
    written = [record(i, answers=[f"답 {i} " + "가" * 1000]) for i in range(3000)]
    files.write_jsonl(path, [one.to_json() for one in written])
    files.write_json(tmp_path / files.MANIFEST, {"sha256": {"train.jsonl": files.sha256_file(path)}})
    assert list(open_split(tmp_path, "train")) == load_split(tmp_path, "train") == written
    split = open_split(tmp_path, "train")
    tracemalloc.start()
    assert len(split) == sum(1 for _ in split) == sum(1 for _ in split) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 9_000_000
    assert peak < 300_000


def test_a_line_that_is_no_record_is_named_when_it_is_read(tmp_path):
    path = files.split_file(tmp_path, "train")
    files.write_jsonl(path, [record(1).to_json(), {"questions": ["왜?"], "answers": []}])
    files.write_json(tmp_path / files.MANIFEST, {"sha256": {"train.jsonl": files.sha256_file(path)}})
    records = iter(open_split(tmp_path, "train"))
    assert next(records) == record(1)
    with pytest.raises(UserError, match=r"train\.jsonl, record 2: answers is not a list of texts"):
        next(records)
