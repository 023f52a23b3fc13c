"""Packing: which tokens have labels, how full packs are, and that packed documents never see each other."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_qa.config.recipe import load_recipe
from llm_qa.console import UserError
from llm_qa.data import packing
from llm_qa.data.packing import (
    IGNORED,
    PackedDataset,
    collate_packs,
    count_real_tokens,
    pack_documents,
    tokenize_records,
)
from llm_qa.data.prompts import encode_documents
from llm_qa.models.precision import resolve_precision
from llm_qa.training.strategy import Strategy
from llm_qa.training.trainer import build_trainer, training_arguments


def original_lengths(count: int) -> np.ndarray:
    """Document lengths like the original data's: exp(N(ln 64, .55)) clipped to 20..400 tokens."""
    return np.clip(np.exp(np.random.default_rng(0).normal(np.log(64), 0.55, count)), 20, 400).astype(np.int64)


def as_lists(packs) -> list[list[int]]:
    return [pack.tolist() for pack in packs]


def one_by_one(pairs, loss_on="answer"):
    return PackedDataset(pairs, 0, loss_on, seed=0)


def test_every_document_is_in_exactly_one_pack_and_none_is_split():
    lengths = original_lengths(6440)
    packs = pack_documents(lengths, 2048, seed=1)
    assert sorted(packs.documents.tolist()) == list(range(6440))
    assert max(int(lengths[pack].sum()) for pack in packs) <= 2048


def test_packs_are_at_least_98_percent_full_on_the_original_length_distribution():
    lengths = original_lengths(6440)
    for pack_length in (512, 2048, 8192):
        packs = pack_documents(lengths, pack_length, seed=1)
        assert lengths.sum() / (len(packs) * pack_length) >= 0.98


def test_packing_is_seeded():
    lengths = original_lengths(500)
    assert as_lists(pack_documents(lengths, 512, seed=1)) == as_lists(pack_documents(lengths, 512, seed=1))
    assert as_lists(pack_documents(lengths, 512, seed=1)) != as_lists(pack_documents(lengths, 512, seed=2))


def best_fit(lengths, pack_length, seed):
    """The slow reference: look at every open pack, take the fullest that fits, the newest of equals."""
    packs, rooms, opened = [], [], []
    for moment, index in enumerate(np.random.default_rng(seed).permutation(len(lengths)).tolist()):
        fitting = [pack for pack, room in enumerate(rooms) if room >= lengths[index]]
        pack = min(fitting, key=lambda pack: (rooms[pack], -opened[pack]), default=len(packs))
        if pack == len(packs):
            packs.append([]), rooms.append(pack_length), opened.append(0)
        packs[pack].append(index)
        rooms[pack] -= int(lengths[index])
        opened[pack] = moment
    return packs


@pytest.mark.parametrize("pack_length", [400, 512, 2048])
def test_packing_is_best_fit(pack_length, monkeypatch):
    monkeypatch.setattr(packing, "PACK_AT_ONCE", 64)
    lengths = original_lengths(700)
    assert as_lists(pack_documents(lengths, pack_length, seed=3)) == best_fit(lengths, pack_length, seed=3)


def test_packing_is_linear_in_time():
    """A document costs the same among ten times as many; it would cost ten times as much were packing quadratic.

    Seconds of this thread's processor, the least of five: what else the machine does can only add.
    """
    few, many, seconds = original_lengths(10_000), original_lengths(100_000), []
    for _ in range(5):
        clocks = [time.thread_time()]
        for work in ([few] * 10, [many]):
            for lengths in work:
                pack_documents(lengths, 512, seed=1)
            clocks.append(time.thread_time())
        seconds.append(np.diff(clocks))
    of_few, of_many = np.min(seconds, axis=0)
    assert of_many < 3 * of_few


def test_packing_is_bounded_in_memory(monkeypatch):
    """No Python object a document or a pack: arrays of 4 to 8 bytes, a few at a time."""
    monkeypatch.setattr(packing, "PACK_AT_ONCE", 4096)
    peaks = []
    for lengths in (original_lengths(10_000), original_lengths(50_000), np.full(50_000, 300)):
        tracemalloc.start()
        packs = pack_documents(lengths, 512, seed=1)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 4 * len(lengths) + 8 * len(packs) + 20_000
        peaks.append(peak)
    assert (peaks[1] - peaks[0]) / 40_000 < 40
    assert (peaks[2] - peaks[0]) / 40_000 < 40, "every pack stays open: none fits a second document"


class Many:
    """The same records again and again with ids of their own, one in memory at a time."""

    def __init__(self, records, count: int):
        self.records, self.count = records, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for number in range(self.count):
            yield replace(self.records[number % len(self.records)], id=f"TRAIN_{number}")


def test_tokens_are_on_the_disk_and_memory_is_bounded(tokenizer, records):
    tokenize_records(tokenizer, records, 256)
    peaks, documents = [], []
    for count in (2_500, 7_500):
        tracemalloc.start()
        pairs, _ = tokenize_records(tokenizer, Many(records, count), 256)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(pairs) == 4 * count
        assert pairs.record_ids[len(pairs) - 1] == f"TRAIN_{count - 1}"
        assert kept < 30 * len(pairs) + 300_000, "starts 8, prompt_lengths 4, record_ids 16 bytes"
        peaks.append(peak)
        documents.append(len(pairs))
    assert pairs.tokens.nbytes > 100 * len(pairs), "far more than the bound, or the test means nothing"
    assert (peaks[1] - peaks[0]) / (documents[1] - documents[0]) < 60


def test_records_streamed_in_parts_give_the_tokens_of_each_pair(tokenizer, records, monkeypatch):
    monkeypatch.setattr(packing, "TOKENIZE_AT_ONCE", 7)
    triples = [(record, q, a) for record in records for q, a in record.pairs()]
    documents = [encode_documents(tokenizer, [(q, a, record.context)])[0] for record, q, a in triples]
    max_length = int(np.median([len(document.input_ids) for document in documents]))
    fits = [i for i, document in enumerate(documents) if len(document.input_ids) <= max_length]
    assert 0 < len(fits) < len(documents), "some must be too long for this test to mean anything"
    pairs, too_long = tokenize_records(tokenizer, records, max_length)
    assert len(too_long) == len(documents) - len(fits)
    for i, expected in enumerate(fits):
        assert pairs.tokens[pairs.starts[i] : pairs.starts[i + 1]].tolist() == documents[expected].input_ids
        assert pairs.prompt_lengths[i] == documents[expected].prompt_length
        assert pairs.record_ids[i] == triples[expected][0].id


def test_the_tokens_file_has_no_name_and_a_folder_without_room_is_one_sentence(
    tokenizer, records, monkeypatch, tmp_path
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pairs, _ = tokenize_records(tokenizer, records, 256)
    assert not any(tmp_path.iterdir())
    assert pairs.tokens[-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="read-only"):
        pairs.tokens[0] = 1
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"cannot be written to .*missing \(No such file.*set TMPDIR"):
        tokenize_records(tokenizer, records, 256)


def test_a_full_disk_is_one_sentence(tokenizer, records, monkeypatch):
    monkeypatch.setattr(packing.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(UserError, match=r"No space left on device\): set TMPDIR to a folder with room"):
        tokenize_records(tokenizer, records, 256)


class Watched(PackedDataset):
    """Remembers which packs were asked for."""

    def __getitem__(self, index):
        self.asked = [*getattr(self, "asked", []), index]
        return super().__getitem__(index)


def order_of_packs(pairs, neox_folder, folder, seed) -> tuple[list[int], list[int]]:
    """The packs of the first and the second epoch as Trainer takes them."""
    recipe = load_recipe("scripts/recipes/tiny.yaml", {"num_train_epochs": 2, "seed": seed, "save_strategy": "no"})
    recipe = replace(recipe, micro_batch_size=1, global_batch_size=1)
    packs = Watched(pairs, 256, "answer", recipe.seed)
    arguments = training_arguments(recipe, resolve_precision(recipe, None), Strategy(), folder)
    arguments.max_steps = -1
    model = AutoModelForCausalLM.from_pretrained(neox_folder)
    tokenizer = AutoTokenizer.from_pretrained(neox_folder)
    build_trainer(model, tokenizer, arguments, packs, None, []).train()
    half = len(packs.asked) // 2
    assert len(packs.asked) == 2 * len(packs)
    return packs.asked[:half], packs.asked[half:]


def test_packs_come_in_another_order_every_epoch_and_the_same_for_the_same_seed(
    tokenizer, records, neox_folder, tmp_path
):
    pairs, _ = tokenize_records(tokenizer, records, 256)
    first, second = order_of_packs(pairs, neox_folder, tmp_path, seed=1)
    assert sorted(first) == sorted(second) == list(range(len(first)))
    assert len({tuple(first), tuple(second), tuple(sorted(first))}) == 3
    assert order_of_packs(pairs, neox_folder, tmp_path, seed=1) == (first, second)
    assert order_of_packs(pairs, neox_folder, tmp_path, seed=2)[0] != first


def test_a_document_as_long_as_the_pack_fits():
    assert sorted(map(len, pack_documents(np.array([8, 8, 3, 5]), 8, seed=0))) == [1, 1, 2]


@pytest.mark.parametrize("architecture", ["neox_folder", "gpt2_folder"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_one_by_one_in_loss_and_gradients(request, architecture, attention, tokenizer, records):
    """The mean over all answer tokens, packed into padded rows, is that of the documents each on its own."""
    folder = request.getfixturevalue(architecture)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float64)
    model.config.use_cache = False
    model.train()
    pairs, _ = tokenize_records(tokenizer, records[:6], 256)
    packed = PackedDataset(pairs, 300, "answer", seed=0)
    batch = collate_packs([packed[i] for i in range(len(packed))], tokenizer.pad_token_id)
    assert len(packed) < len(pairs) / 2
    assert (batch["position_ids"] == 0).sum() > len(pairs), "some rows must be padded for this test to mean anything"

    packed_loss = model(**batch).loss
    packed_loss.backward()
    packed_gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    singles = one_by_one(pairs)
    total = sum((singles[i]["labels"] != IGNORED).sum() for i in range(len(singles)))
    loss_sum = 0.0
    for i in range(len(singles)):
        item = singles[i]
        part = model(input_ids=item["input_ids"][None], labels=item["labels"][None]).loss
        part = part * (item["labels"] != IGNORED).sum() / total
        part.backward()
        loss_sum += part.item()
    assert packed_loss.item() == pytest.approx(loss_sum, rel=1e-6)  # transformers takes the loss in fp32
    for name, parameter in model.named_parameters():
        assert torch.allclose(packed_gradients[name], parameter.grad, rtol=1e-5, atol=1e-8), name


def test_an_all_ones_mask_would_let_documents_leak(neox_folder, tokenizer, records):
    """Why no attention mask is passed: with one, the packed loss is another."""
    model = AutoModelForCausalLM.from_pretrained(neox_folder, attn_implementation="sdpa")
    pairs, _ = tokenize_records(tokenizer, records[:6], 256)
    item = {key: value[None] for key, value in PackedDataset(pairs, 400, "answer", seed=0)[0].items()}
    right = model(**item, use_cache=False).loss.item()
    leaking = model(**item, attention_mask=torch.ones_like(item["input_ids"]), use_cache=False).loss.item()
    assert abs(right - leaking) > 1e-4


def test_original_trap_eos_is_trained_although_it_is_also_the_padding(tokenizer, records):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    pairs, _ = tokenize_records(tokenizer, records[:3], 256)
    singles = one_by_one(pairs)
    batch = collate_packs([singles[i] for i in range(len(singles))], tokenizer.pad_token_id)
    learned_eos = ((batch["labels"] == tokenizer.eos_token_id).sum(dim=1)).tolist()
    assert learned_eos == [1] * len(pairs)


def test_original_trap_loss_is_on_the_answer_only(tokenizer, records):
    pairs, _ = tokenize_records(tokenizer, records[:1], 256)
    item = one_by_one(pairs)[0]
    num_label_tokens = item["labels"][item["labels"] != IGNORED]
    text = tokenizer.decode(num_label_tokens)
    assert text.endswith("<|endoftext|>")
    assert text.removesuffix("<|endoftext|>").strip() in records[0].answers
    assert "질문" not in text


def test_original_trap_nothing_is_cut_at_128_tokens(tokenizer, records):
    long = records[3]
    pairs, too_long = tokenize_records(tokenizer, [long], 30)
    full, none = tokenize_records(tokenizer, [long], 512)
    assert none == []
    assert full.lengths.max() > 30, "the record must be long for this test to mean anything"
    assert len(pairs) + len(too_long) == 4
    assert all(pair.tokens > 30 and pair.record == long.id for pair in too_long)
    assert pairs.lengths.max() <= 30


def test_loss_on_everything_leaves_out_each_documents_first_token(tokenizer, records):
    pairs, _ = tokenize_records(tokenizer, records[:3], 256)
    packed = PackedDataset(pairs, 2048, "everything", seed=0)
    item = packed[0]
    assert (item["labels"] == IGNORED).sum() == len(pairs)
    assert torch.equal(item["labels"] == IGNORED, item["position_ids"] == 0)


@pytest.mark.parametrize("loss_on", ["answer", "everything"])
@pytest.mark.parametrize("pack_length", [0, 256])
def test_the_most_learned_tokens_of_a_pack_are_known_beforehand(tokenizer, records, pack_length, loss_on):
    pairs, _ = tokenize_records(tokenizer, records, 256)
    packed = PackedDataset(pairs, pack_length, loss_on, seed=0, multiple_of=1000)
    counts = [int((packed[i]["labels"] != IGNORED).sum()) for i in range(len(packed))]
    assert packed.max_label_tokens == max(counts) < packed.capacity


def test_real_tokens_are_counted_without_padding(tokenizer, records):
    pairs, _ = tokenize_records(tokenizer, records, 256)
    packed = PackedDataset(pairs, 256, "answer", seed=0)
    batch = collate_packs([packed[i] for i in range(len(packed))], tokenizer.pad_token_id)
    assert count_real_tokens(batch["position_ids"]).item() == len(pairs.tokens)
    assert batch["input_ids"].numel() > len(pairs.tokens)


def test_no_pair_that_fits_is_one_sentence(tokenizer, records):
    with pytest.raises(UserError, match="None of the 4 question-answer pairs fits max_length 9"):
        tokenize_records(tokenizer, records[:1], 9)


def test_empty_packs_fill_the_last_update_and_teach_nothing(tokenizer, records):
    pairs, _ = tokenize_records(tokenizer, records, 64)
    plain = PackedDataset(pairs, 64, "answer", seed=0)
    filled = PackedDataset(pairs, 64, "answer", seed=0, multiple_of=len(plain) + 3)
    assert len(filled) == len(plain) + 3
    assert filled.efficiency == plain.efficiency
    empty = collate_packs([filled[len(plain)], filled[len(filled) - 1]], pad_token_id=0)
    assert (empty["labels"] == IGNORED).all()
    assert count_real_tokens(empty["position_ids"]) == 0
    assert PackedDataset(pairs, 64, "answer", seed=0, multiple_of=len(plain)).empty == 0
