"""References at random for a share of the documents, anew every epoch, in the updates of the first."""

from dataclasses import replace

import numpy as np
import pytest

from llm_qa.data.joined_packs import joining_of
from llm_qa.data.packing import tokenize_records
from llm_qa.data.reference_packs import ReferencesDataset
from llm_qa.data.references import References, Retrieval, before


def redrawn(tokenizer, records, *, pack_length=512, max_length=256, hit=0.7, join=0.0):
    references = References(records, Retrieval(2, hit, 7))
    pairs, _ = tokenize_records(tokenizer, records, max_length, encode=references.encode)
    triples = [(record, *pair) for record in records for pair in record.pairs()]
    how = (pairs, pack_length, "answer", 7, 4)
    joining = joining_of(tokenizer, records, join, max_length, references) if join else None
    return ReferencesDataset(*how, triples, references, tokenizer, max_length, joining), references, triples


def documents(data):
    """The epoch's documents by the record they are of: (prompt and answer, tokens of the answer)."""
    bounds, lengths = data.pairs.starts, data.pairs.prompt_lengths
    return {
        int(i): (data.pairs.tokens[bounds[i] : bounds[i + 1]].tolist(), int(bounds[i + 1] - bounds[i] - lengths[i]))
        for i in data.packs.documents
    }


@pytest.mark.parametrize("pack_length", [512, 0])
def test_every_epoch_has_each_pair_once_in_as_many_rows(tokenizer, records, pack_length):
    data, _, triples = redrawn(tokenizer, records, pack_length=pack_length)
    rows = len(data)
    assert rows % 4 == 0
    for epoch in range(4):
        data.set_epoch(epoch)
        assert len(data) == rows
        assert 0.15 < data.num_drawn / len(triples) < 0.45
        endings = sorted(tuple(tokens[len(tokens) - answer :]) for tokens, answer in documents(data).values())
        data_of_all = tokenize_records(tokenizer, records, 256)[0]
        bounds, lengths = data_of_all.starts, data_of_all.prompt_lengths
        plain = [data_of_all.tokens[bounds[i] + lengths[i] : bounds[i + 1]] for i in range(len(data_of_all))]
        assert endings == sorted(tuple(tokens.tolist()) for tokens in plain), "the same answers are learned"
        assert max(len(data[i]["labels"]) for i in range(rows)) <= data.capacity


def test_a_drawn_document_is_the_pair_that_it_replaces_after_the_references_drawn_for_it(tokenizer, records):
    data, references, triples = redrawn(tokenizer, records)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        drawn = data.draw(epoch)[:10]
        assert drawn
        for one in drawn:
            (place,) = one.replaces
            record, question, answer = triples[place]
            found = references.drawn([record], question, epoch)
            (document,) = references.encode_with(tokenizer, [(record, question, answer)], [found], 256)
            assert one.document == document
            assert place not in data.packs.documents


def test_epochs_differ_and_are_the_same_wherever_they_are_drawn(tokenizer, records):
    one, other = redrawn(tokenizer, records)[0], redrawn(tokenizer, records)[0]
    first = one.pairs.tokens
    one.set_epoch(2)
    assert not np.array_equal(one.pairs.tokens, first)
    other.set_epoch(2)  # as after a resume, without the epochs before
    assert np.array_equal(one.pairs.tokens, other.pairs.tokens)
    assert np.array_equal(one.packs.documents, other.packs.documents)


def test_pairs_that_are_set_aside_are_not_drawn(tokenizer, records):
    alone = tokenize_records(tokenizer, records, 256)[0].lengths
    data, _, triples = redrawn(tokenizer, records, max_length=int(np.median(alone)), hit=0.0)
    assert len(data.singles) < len(triples)
    assert data.pairs.lengths.max() <= np.median(alone)
    kept = [triples[number][0].id for number in data.singles.numbers]
    assert kept == list(map(str, data.singles.record_ids))


@pytest.mark.parametrize(("pack_length", "hit"), [(1024, 0.5), (1024, 1.0), (0, 0.5)])
def test_joined_documents_have_references_that_are_not_their_own(tokenizer, records, pack_length, hit):
    twin = replace(records[1], id="twin", questions=("다른 말로 묻습니다?",), answers=records[0].answers[:1])
    data, _, triples = redrawn(tokenizer, [*records, twin], pack_length=pack_length, max_length=512, hit=hit, join=0.3)
    by_id = {record.id: record for record in (*records, twin)}
    rows, names = len(data), [record.id for record, _, _ in triples]
    for epoch in range(3):
        data.set_epoch(epoch)
        assert len(data) == rows
        assert 0.2 < data.joined_share < 0.4
        others = data.num_drawn - data.num_joined
        assert (others > 0) == (hit < 1)
        present = [name for i in data.packs.documents for name in str(data.pairs.record_ids[i]).split("+")]
        if pack_length:  # of rows of one document each, those that are joined are in both orders
            assert sorted(present) == sorted(names)
        joined = [(i, name) for i in data.packs.documents if "+" in (name := str(data.pairs.record_ids[i]))]
        assert len(joined) == data.num_joined
        for i, name in joined:
            text = tokenizer.decode(data.pairs.tokens[data.pairs.starts[i] : data.pairs.starts[i + 1]].tolist())
            given, _, rest = text.rpartition("### 질문:")
            first, second = (by_id[part] for part in name.split("+"))
            assert given.count("참고 질문:") == 2
            own = [first, second, *([records[0], twin] if {"R00", "twin"} & {first.id, second.id} else [])]
            texts = [t for record in own for t in (*record.questions, *record.answers)]
            assert not [text for text in texts if text in given], "nothing of the records or of their groups"
            assert any(question in rest for question in first.questions)
            assert any(answer in rest for answer in second.answers)


def test_joined_documents_without_references_at_random_are_the_nearest_of_the_joined_question(tokenizer, records):
    data, references, _ = redrawn(tokenizer, records, pack_length=1024, max_length=512, hit=1.0, join=0.3)
    by_id = {record.id: record for record in records}
    for one in data.joining.draw(data.singles, 0, 7, packed=True)[:10]:
        given, _, rest = tokenizer.decode(one.document.input_ids).rpartition("### 질문: ")
        two = [by_id[str(data.singles.record_ids[i])] for i in one.replaces]
        found = references.nearest(rest.partition("\n")[0], 2, beside=two)
        assert before(found, "") in given
