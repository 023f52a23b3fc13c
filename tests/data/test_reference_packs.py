"""References at random for a share of the documents, anew every epoch, in the updates of the first."""

import numpy as np
import pytest

from llm_qa.data.packing import tokenize_records
from llm_qa.data.reference_packs import ReferencesDataset
from llm_qa.data.references import References, Retrieval


def redrawn(tokenizer, records, *, pack_length=512, max_length=256, hit=0.7):
    references = References(records, Retrieval(2, hit, 7))
    pairs, _ = tokenize_records(tokenizer, records, max_length, encode=references.encode)
    triples = [(record, *pair) for record in records for pair in record.pairs()]
    how = (pairs, pack_length, "answer", 7, 4)
    return ReferencesDataset(*how, triples, references, tokenizer, max_length), references, triples


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
            found = references.drawn(record, question, epoch)
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
