"""Packing: what is learned, how full packs are, and that packed documents never see each other."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_qa.console import UserError
from llm_qa.data.packing import (
    IGNORED,
    PackedDataset,
    collate_packs,
    count_real_tokens,
    pack_documents,
    tokenize_records,
)


def original_lengths(count: int) -> np.ndarray:
    """Document lengths like the original data's: exp(N(ln 64, .55)) clipped to 20..400 tokens."""
    return np.clip(np.exp(np.random.default_rng(0).normal(np.log(64), 0.55, count)), 20, 400).astype(np.int64)


def one_by_one(pairs, loss_on="answer"):
    return PackedDataset(pairs, 0, loss_on, seed=0)


def test_every_document_is_in_exactly_one_pack_and_none_is_split():
    lengths = original_lengths(6440)
    packs = pack_documents(lengths, 2048, seed=1)
    assert sorted(i for pack in packs for i in pack) == list(range(6440))
    assert max(int(lengths[pack].sum()) for pack in packs) <= 2048


def test_packs_are_at_least_98_percent_full_on_the_original_length_distribution():
    lengths = original_lengths(6440)
    for pack_length in (1024, 2048, 8192):
        packs = pack_documents(lengths, pack_length, seed=1)
        assert lengths.sum() / (len(packs) * pack_length) >= 0.98


def test_packing_is_seeded():
    lengths = original_lengths(500)
    assert pack_documents(lengths, 512, seed=1) == pack_documents(lengths, 512, seed=1)
    assert pack_documents(lengths, 512, seed=1) != pack_documents(lengths, 512, seed=2)


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
    learned = item["labels"][item["labels"] != IGNORED]
    text = tokenizer.decode(learned)
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
