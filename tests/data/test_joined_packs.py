"""Two questions in one: which documents are joined, anew every epoch, in the updates of the single documents."""

from dataclasses import replace

import numpy as np
import pytest

from llm_qa.console import UserError
from llm_qa.data.joined_packs import JoinedDataset, joining_of
from llm_qa.data.joining import CONNECTIVES, asks_two_questions, joined_records, share_a_text
from llm_qa.data.packing import PackedDataset, tokenize_records
from llm_qa.data.preparation import bundled_file
from llm_qa.data.readers.csv import split_rows


def joined(tokenizer, records, *, share=0.3, pack_length=512, max_length=256, multiple_of=4):
    pairs, _ = tokenize_records(tokenizer, records, max_length)
    joining = joining_of(tokenizer, records, share, max_length)
    return JoinedDataset(pairs, pack_length, "answer", 7, multiple_of, joining)


def texts(tokenizer, data):
    """The documents that ask two questions, as text."""
    bounds = zip(data.pairs.starts[len(data.singles) : -1], data.pairs.starts[len(data.singles) + 1 :], strict=True)
    return [tokenizer.decode(data.pairs.tokens[begin:end].tolist()) for begin, end in bounds]


@pytest.mark.parametrize("pack_length", [512, 0])
def test_an_epoch_has_the_share_each_document_once_and_the_updates_of_single_documents(tokenizer, records, pack_length):
    data = joined(tokenizer, records, pack_length=pack_length)
    single = PackedDataset(data.singles, pack_length, "answer", 7, 4)
    for epoch in range(4):
        data.set_epoch(epoch)
        assert len(data) == len(single)
        assert data.joined_share == pytest.approx(0.3, abs=0.05)
        names = [name for i in data.packs.documents for name in str(data.pairs.record_ids[i]).split("+")]
        if pack_length:  # of rows of one document each, those that are joined are in both orders
            assert sorted(names) == sorted(map(str, data.singles.record_ids))
        assert set(names) == set(map(str, data.singles.record_ids))
        rows = [data[i] for i in range(len(data))]
        assert sum((row["labels"] != -100).any().item() for row in rows) == len(data) - single.empty
        assert max(len(row["labels"]) for row in rows) <= data.capacity
        assert max(int((row["labels"] != -100).sum()) for row in rows) <= data.max_label_tokens
        tokens = np.concatenate([row["input_ids"] for row in rows if (row["labels"] != -100).any()])
        assert len(tokens) == data.pairs.lengths[data.packs.documents].sum()


def test_a_joined_document_has_two_questions_and_both_answers(tokenizer, records):
    data = joined(tokenizer, records)
    by_id = {record.id: record for record in records}
    documents = texts(tokenizer, data)
    assert len(documents) > 10
    for text, name in zip(documents, data.pairs.record_ids[len(data.singles) :], strict=True):
        first, second = (by_id[part] for part in str(name).split("+"))
        question, answer = text.removesuffix(tokenizer.eos_token).split("\n\n### 답변: ")
        question = question.removeprefix("### 질문: ")
        assert question in {f"{a} {c}{b}" for a in first.questions for b in second.questions for c in CONNECTIVES}
        assert answer in {f"{a} {b}" for a in first.answers for b in second.answers}
        assert not share_a_text(first, second)
        assert asks_two_questions(question)


def test_epochs_differ_and_are_the_same_wherever_they_are_drawn(tokenizer, records):
    one, other = joined(tokenizer, records), joined(tokenizer, records)
    first = texts(tokenizer, one)
    one.set_epoch(2)
    assert texts(tokenizer, one) != first
    other.set_epoch(2)  # as after a resume, without the epochs before
    assert np.array_equal(one.pairs.tokens, other.pairs.tokens)
    assert np.array_equal(one.packs.documents, other.packs.documents)


def test_what_is_too_long_stays_single_and_a_share_of_zero_joins_nothing(tokenizer, records):
    longest = int(joined(tokenizer, records).singles.lengths.max())
    short = joined(tokenizer, records, max_length=longest)
    assert short.pairs.lengths.max() <= longest
    assert 0 < short.joined_share < 0.3
    assert joined(tokenizer, records, share=0.0).joined_share == 0


def test_questions_about_passages_are_not_joined(tokenizer, records):
    about = [replace(record, context="도면에 벽이 있다.") for record in records[:10]]
    data = joined(tokenizer, [*about, *records[10:]], share=0.6)
    names = [str(name) for name in data.pairs.record_ids[len(data.singles) :]]
    assert names
    assert {part for name in names for part in name.split("+")} <= {record.id for record in records[10:]}
    with pytest.raises(UserError, match="has 0 such: set join_questions to 0"):
        joining_of(tokenizer, about, 0.3, 256)


def test_held_out_records_are_joined_two_by_two(records):
    pairs = joined_records([*records, replace(records[0], id="same")], seed=0)
    parts = [record.id for first, second, _ in pairs for record in (first, second)]
    assert len(set(parts)) == len(parts) >= len(records)
    for first, second, both in pairs:
        assert both.id == f"{first.id}+{second.id}"
        assert len(both.questions) == len(both.answers) == 2
        assert both.answers[1] == f"{first.answers[1]} {second.answers[1]}"
        assert not share_a_text(first, second)
    assert pairs == joined_records([*records, replace(records[0], id="same")], seed=0)


def test_double_questions_are_recognised():
    for text in (
        "벽지가 왜 들뜨나요? 또한, 곰팡이는 어떻게 지우나요?",
        "두 벽지의 장단점은 무엇이며, 또 바탕은 어떻게 준비해야 하나요?",
    ):
        assert asks_two_questions(text)
    for text in ("벽지가 왜 들뜨나요?", "집이 추워요. 어떻게 하나요?", "안녕하세요", "정말요?!"):
        assert not asks_two_questions(text)
    rows = [row for _, row, _ in split_rows(bundled_file("test.csv").read_text(encoding="utf-8"))][1:]
    found = [row[1] for row in rows if asks_two_questions(row[1])]
    assert 0 < len(found) < len(rows)
