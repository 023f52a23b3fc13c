"""A validation loss becomes bits per character of the answers that it was computed on."""

import math
from dataclasses import replace

import pytest

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.data.packing import IGNORED, PackedDataset, tokenize_records
from llm_qa.training.data_sets import RunRecords
from llm_qa.training.model_setup import load_tokenizer_for
from llm_qa.tuning.validation import ValidationText, validation_text


@pytest.fixture
def run_records(records, tmp_path):
    return RunRecords(tmp_path, records[:12], records[12:])


@pytest.mark.parametrize("length", [128, 32])
def test_it_counts_the_labels_that_a_run_validates_on(run_records, neox_folder, length):
    recipe = make_recipe({"model": str(neox_folder), "max_length": length, "pack_length": 128})
    text = validation_text(run_records, recipe)
    tokenizer, _ = load_tokenizer_for(recipe, str(neox_folder))
    pairs, too_long = tokenize_records(tokenizer, run_records.validation, length)
    assert bool(too_long) == (length == 32)
    packs = PackedDataset(pairs, 128, "answer", 0)
    assert text.label_tokens == sum(int((packs[i]["labels"] != IGNORED).sum()) for i in range(len(packs)))
    answers = [len(answer) for record in run_records.validation for _, answer in record.pairs()]
    assert (text.characters == sum(answers)) == (length == 128)


def test_no_bits_where_questions_are_learned_too(run_records, neox_folder):
    assert validation_text(run_records, make_recipe({"model": str(neox_folder), "loss_on": "everything"})) is None


def test_bits_are_worked_by_hand():
    assert ValidationText(30, 60).bits_per_character(2 * math.log(2)) == pytest.approx(1.0)


def test_data_without_validation_records_is_refused(run_records, neox_folder):
    with pytest.raises(UserError, match="--validation"):
        validation_text(replace(run_records, validation=[]), make_recipe({"model": str(neox_folder)}))
