"""Loading and saving: tokenizers as they stand, safetensors only, nothing executed."""

import json
import shutil
from functools import partial

import pytest

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.models.loading import check_tokenizer_fits, load_base, load_run, load_tokenizer, save_tokenizer
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
