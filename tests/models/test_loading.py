"""Loading and saving: tokenizers as they stand, safetensors only, nothing executed."""

import json
import shutil
from functools import partial

import pytest

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.data.prompts import encode_prompts
from llm_qa.inference.generate import generate_answers
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import StaticDecoder
from llm_qa.inference.streaming import stream_tokens
from llm_qa.models.loading import (
    align_special_tokens,
    check_tokenizer_fits,
    end_tokens,
    load_base,
    load_run,
    load_tokenizer,
    save_tokenizer,
)
from llm_qa.models.precision import resolve_precision

FP32 = resolve_precision(make_recipe({"base_precision": "fp32"}), None)


@pytest.mark.parametrize("declared", ["GPTNeoXTokenizerFast", "GPT2Tokenizer", None, "PreTrainedTokenizerFast"])
def test_a_tokenizer_json_is_taken_as_it_stands_whatever_class_is_declared(tmp_path, neox_folder, declared):
    folder = shutil.copytree(neox_folder, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("tokenizer_class", None)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, **({"tokenizer_class": declared} if declared else {})})
    )
    core = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    core["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
    (folder / "tokenizer.json").write_text(json.dumps(core), encoding="utf-8")
    loaded = load_tokenizer(folder)
    assert json.loads(loaded.backend_tokenizer.to_str())["pre_tokenizer"]["type"] == "Metaspace"


def test_saved_tokenizers_name_a_class_that_transformers_4_has(tmp_path, tokenizer):
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "똠방각하 1.5m, 뷁! 한자 漢字 🏠"
    assert load_tokenizer(tmp_path).decode(tokenizer(text)["input_ids"]) == text


def test_a_missing_pad_token_becomes_eos(tmp_path, neox_folder):
    folder = shutil.copytree(neox_folder, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    loaded = load_tokenizer(folder)
    assert loaded.pad_token_id == loaded.eos_token_id


def test_a_tokenizer_without_eos_is_refused(tmp_path, neox_folder):
    folder = shutil.copytree(neox_folder, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for token in ("pad_token", "eos_token", "bos_token"):
        config.pop(token, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="has no eos token"):
        load_tokenizer(folder)


def test_a_sentencepiece_model_alone_is_refused_with_the_packages_to_install(tmp_path, neox_folder, monkeypatch):
    monkeypatch.setattr("llm_qa.models.loading.is_sentencepiece_available", lambda: False)
    folder = shutil.copytree(neox_folder, tmp_path / "model")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(UserError, match=r"tokenizer\.model without a tokenizer\.json, .*pip install sentencepiece"):
        load_tokenizer(folder)
    shutil.copy(neox_folder / "tokenizer.json", folder)
    assert load_tokenizer(folder).eos_token_id is not None


def test_original_trap_another_models_tokenizer_is_refused(neox_folder, tokenizer):
    """The original saved KoGPT2's tokenizer beside polyglot's weights."""
    model = load_base(neox_folder, FP32)
    check_tokenizer_fits(tokenizer, model)
    model.resize_token_embeddings(len(tokenizer) - 1)
    with pytest.raises(UserError, match="they do not belong together"):
        check_tokenizer_fits(tokenizer, model)


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a run: it has no recipe.yaml"):
        load_run(tmp_path)


def test_the_cache_is_off(neox_folder):
    assert load_base(neox_folder, FP32).config.use_cache is False


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", [b"", b"[1]", b"{}", b"\xff" * 500, b'{"hidden_size": "wide"}'])
def test_a_broken_file_of_a_checkpoint_is_one_sentence(tmp_path, neox_folder, name, damage):
    folder = shutil.copytree(neox_folder, tmp_path / "model")
    (folder / name).write_bytes(damage)
    load = load_tokenizer if "tokenizer" in name else partial(load_base, precision=FP32)
    with pytest.raises(UserError, match=str(folder)) as error:
        load(folder)
    assert "\n" not in str(error.value)


def with_generation_config(folder, tmp_path, tokenizer, **values):
    """A copy of a model's folder whose own generation config says more than its tokenizer does."""
    folder = shutil.copytree(folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(values))
    tokenizer.save_pretrained(folder)
    return folder


def test_a_models_own_generation_config_changes_no_answer(tmp_path, neox_folder, tokenizer):
    """Qwen2.5 comes with a penalty of repetitions, which "greedy" would have had in silence."""
    penalised = with_generation_config(neox_folder, tmp_path, tokenizer, repetition_penalty=5.0, min_new_tokens=9)
    question, settings = [("벽지는 왜 들뜨나요?", "")], GenerationSettings(max_new_tokens=12)
    answers = [
        generate_answers(load_base(folder, FP32), tokenizer, question, settings) for folder in (neox_folder, penalised)
    ]
    assert answers[0] == answers[1]


def test_a_chat_model_ends_by_any_token_of_its_generation_config(tmp_path, neox_folder, tokenizer):
    model, question = load_base(neox_folder, FP32), [("벽지는 왜 들뜨나요?", "")]
    tokens = list(stream_tokens(model, tokenizer, encode_prompts(tokenizer, question)[0], GenerationSettings(6)))
    third = tokens[2][0]
    ends = [third, tokenizer.eos_token_id]
    model = load_base(with_generation_config(neox_folder, tmp_path, tokenizer, eos_token_id=ends), FP32)
    assert end_tokens(model, tokenizer) == [tokenizer.eos_token_id], "the plain prompt ends with the tokenizer's alone"
    chatting = load_tokenizer(tmp_path / "model")
    chatting.chat_template = "{% for m in messages %}### 질문: {{ m.content }}\n\n### 답변:{% endfor %}"
    align_special_tokens(model, chatting)
    assert end_tokens(model, chatting) == [tokenizer.eos_token_id, third]
    decoder = StaticDecoder(model, 1, 64, eos_token_id=end_tokens(model, chatting), pad_token_id=0)
    for by in (None, decoder):
        assert generate_answers(model, chatting, question, GenerationSettings(6), decoder=by)[0].stopped
        streamed = [
            id
            for new in stream_tokens(model, chatting, encode_prompts(chatting, question)[0], GenerationSettings(6), by)
            for id in new
        ]
        assert streamed == [token for (token,) in tokens[:3]]
