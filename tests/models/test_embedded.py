"""The embedded model: what a real checkpoint has, the same for everybody, checked before it is used."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm_qa.console import Failed, UserError
from llm_qa.data.preparation import prepared_folder
from llm_qa.data.splits import load_split
from llm_qa.models import embedded
from llm_qa.models.loading import load_tokenizer

MOST_SHIPPED = 16e6  # bytes


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache of its own."""
    monkeypatch.setenv("LLM_QA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_expanded_once_and_found_again(cache, monkeypatch):
    first = embedded.embedded_model()
    assert first.parent == cache
    monkeypatch.setattr(embedded, "expand", None)
    assert embedded.embedded_model() == first


def test_what_is_shipped_is_small_and_has_a_card(cache):
    assert sum(path.stat().st_size for path in embedded.SHIPPED.iterdir()) < MOST_SHIPPED
    card = (embedded.SHIPPED / "README.md").read_text(encoding="utf-8")
    assert all(licence in card for licence in ("CC BY 4.0", "Apache-2.0", "BSD-3-Clause", "CC0"))


def test_a_damaged_file_is_one_sentence(cache, tmp_path):
    shipped = tmp_path / "shipped"
    shutil.copytree(embedded.SHIPPED, shipped)
    with open(shipped / "tokenizer.json", "ab") as file:
        file.write(b" ")
    with pytest.raises(Failed, match="tokenizer.json is damaged .*: install the package anew"):
        embedded.embedded_model(shipped)
    assert not list(cache.glob("*"))


def test_a_cache_that_cannot_be_written_to_is_one_sentence(monkeypatch):
    monkeypatch.setenv("LLM_QA_CACHE", "/proc/cache")
    with pytest.raises(UserError, match="cannot be kept in /proc/cache .*: set LLM_QA_CACHE to a folder"):
        embedded.embedded_model()


def test_eight_bits_are_within_half_a_step_of_every_weight(tmp_path):
    torch.manual_seed(0)
    sizes = torch.tensor([[1e-4], [0.1], [1.0], [7.0], [0.0]])
    weights = {"a.weight": torch.randn(5, 64) * sizes, "a.bias": torch.ones(5)}
    back = embedded.expand(embedded.shrink(weights))
    assert back.keys() == weights.keys()
    assert all(weight.dtype == torch.float16 for weight in back.values())
    steps = weights["a.weight"].abs().amax(1, keepdim=True) / 127
    # Half a step, and what fp16 rounds of the scale (2^-11, at 127 steps) and of the product.
    assert ((back["a.weight"].float() - weights["a.weight"]).abs() <= 0.63 * steps + 1e-7).all()
    assert torch.equal(back["a.bias"], torch.ones(5).half())


def test_what_is_shipped_is_what_is_read(cache, tmp_path, tokenizer):
    model = embedded.new_model(len(tokenizer), tokenizer.eos_token_id, 64, 1)
    shipped = embedded.ship(model, tokenizer, tmp_path / "shipped")
    folder = embedded.embedded_model(shipped)
    expected = embedded.expand(embedded.shrink(dict(model.named_parameters())))
    read = load_file(folder / "model.safetensors")
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)
    assert load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()


def test_it_is_a_small_polyglot_that_knows_korean(cache):
    folder = embedded.embedded_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), load_tokenizer(folder)
    assert model.config.model_type == "gpt_neox"
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.5
    assert model.config.use_parallel_residual
    assert model.get_input_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr()
    answers = [answer for record in load_split(prepared_folder(None), "train") for answer in record.answers][:40]
    nats, characters = 0.0, 0
    with torch.no_grad():
        for answer in answers:
            words = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[tokenizer.eos_token_id, *words]])
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            characters += len(answer)
    assert nats / characters / 0.6931 < 5.5  # bits a character of text that it never saw; syllables guessed: 13.4


def test_any_text_round_trips(cache):
    tokenizer = load_tokenizer(embedded.embedded_model())
    every_syllable = "".join(map(chr, range(0xAC00, 0xD7A4, 97)))
    for text in (every_syllable, "뷁 쀍 1.5m~2m ㎡ “따옴표” 漢字 🏠\n\t끝"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_model_that_another_process_has_expanded_meanwhile_stays(tmp_path):
    staged, folder = tmp_path / ".staged", tmp_path / "embedded"
    for path, text in ((staged, "late"), (folder, "in use")):
        path.mkdir()
        (path / "config.json").write_text(text)
    embedded.put_in_place(staged, folder)
    assert (folder / "config.json").read_text() == "in use"
    (folder / "config.json").unlink()  # half of one is replaced
    embedded.put_in_place(staged, folder)
    assert (folder / "config.json").read_text() == "late"
