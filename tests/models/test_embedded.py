"""The embedded model: what a real checkpoint has, deterministic, cached by content."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_qa.console import UserError
from llm_qa.models import embedded
from llm_qa.models.loading import load_tokenizer


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A shorter language-model training, and a cache of its own."""
    monkeypatch.setattr(embedded, "STEPS", 3)
    monkeypatch.setenv("LLM_QA_CACHE", str(tmp_path / "cache"))


def test_it_is_built_once_and_found_again(quick, records, capsys):
    first = embedded.embedded_model(records)
    assert "building" in capsys.readouterr().out
    assert embedded.embedded_model(records) == first
    assert "from the cache" in capsys.readouterr().out
    assert embedded.embedded_model(records[:10]) != first


def test_a_cache_that_cannot_be_written_to_is_one_sentence_before_anything_is_trained(records, monkeypatch):
    monkeypatch.setenv("LLM_QA_CACHE", "/proc/cache")
    monkeypatch.setattr(embedded, "build", None)
    with pytest.raises(UserError, match="cannot be kept in /proc/cache .*: set LLM_QA_CACHE to a folder"):
        embedded.embedded_model(records)


def test_two_builds_are_equal_to_the_last_bit(quick, records, tmp_path):
    texts = embedded.documents(records)
    state = torch.get_rng_state()
    for name in ("a", "b"):
        embedded.build(texts, tmp_path / name)
    assert torch.equal(state, torch.get_rng_state()), "building must not disturb the caller's random numbers"
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_it_is_a_small_polyglot(quick, records):
    model = AutoModelForCausalLM.from_pretrained(embedded.embedded_model(records))
    assert model.config.model_type == "gpt_neox"
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.5
    assert model.config.use_parallel_residual
    assert model.get_input_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr()


def test_any_text_round_trips(quick, records):
    tokenizer = load_tokenizer(embedded.embedded_model(records))
    every_syllable = "".join(map(chr, range(0xAC00, 0xD7A4, 97)))
    for text in (every_syllable, "뷁 쀍 1.5m~2m ㎡ “따옴표” 漢字 🏠\n\t끝"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_no_question_answer_pair_is_in_its_training_text(records):
    text = "\n".join(embedded.documents(records))
    assert not any(question in text for record in records for question in record.questions)
    assert all(answer in text for record in records for answer in record.answers)


def test_a_model_that_another_process_has_built_meanwhile_stays(tmp_path):
    staged, folder = tmp_path / ".staged", tmp_path / "embedded"
    for path, text in ((staged, "late"), (folder, "in use")):
        path.mkdir()
        (path / "config.json").write_text(text)
    embedded.put_in_place(staged, folder)
    assert (folder / "config.json").read_text() == "in use"
    (folder / "config.json").unlink()  # half of one is replaced
    embedded.put_in_place(staged, folder)
    assert (folder / "config.json").read_text() == "late"
