"""One document a row: as many documents an update as packs would have held, and no larger passes."""

import numpy as np
import pytest

from llm_qa.config.recipe import make_recipe
from llm_qa.data.packing import PackedDataset, TokenizedPairs
from llm_qa.training.rows import one_document_a_row
from llm_qa.training.strategy import accumulation_steps, micro_batch_size


def pairs_of(lengths):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(starts[-1], dtype=np.int32) % 50
    return TokenizedPairs(tokens, starts, np.ones(len(lengths), np.int32), [str(i) for i in range(len(lengths))])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("update", "micro"), [(4, 1), (8, 2), (16, 4)])
@pytest.mark.parametrize("longest", [60, 200, 500])
def test_an_update_holds_as_many_documents_and_a_pass_no_more_tokens(processes, update, micro, longest):
    lengths = np.random.default_rng(0).integers(20, longest, 400)
    recipe = make_recipe({"pack_length": 512, "global_batch_size": update, "micro_batch_size": micro})
    packs = PackedDataset(pairs_of(lengths), 512, "answer", 0, update)
    a_pass = micro_batch_size(recipe, processes)
    rows = one_document_a_row(recipe, packs, a_pass)
    assert rows.pack_length == 0
    documents = update * len(lengths) / len(packs.packs)
    assert rows.global_batch_size == pytest.approx(documents, rel=0.35)
    assert rows.micro_batch_size * lengths.max() <= max(a_pass * 512, lengths.max())
    passes = accumulation_steps(rows, processes)  # UserError where it cannot be shared out evenly
    assert passes * micro_batch_size(rows, processes) * processes == rows.global_batch_size


def test_the_line_says_what_takes_the_place_of_what(capsys):
    recipe = make_recipe({"pack_length": 512, "global_batch_size": 2})
    packs = PackedDataset(pairs_of([100] * 40), 512, "answer", 0, 2)
    one_document_a_row(recipe, packs, 1)
    assert capsys.readouterr().out == (
        "one document per row: 10 documents per update, 5 per forward pass, in place of 2 packs of 512 tokens with "
        "5.0 documents "
        "each\n"
    )
