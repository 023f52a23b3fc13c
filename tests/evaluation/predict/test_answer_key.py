"""What decides an answer changes its key, and nothing else does."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llm_qa.config.recipe import Recipe
from llm_qa.evaluation.predict import answer_key
from llm_qa.evaluation.predict.answer_key import answers_key
from llm_qa.models.precision import resolve_precision

PRECISION = resolve_precision(Recipe(base_precision="fp32"), None)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "adapter"
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes(b"one")
    (place / "adapter_config.json").write_text(json.dumps({"lora_alpha": 32}))
    (place / "tokenizer.json").write_text("{}")
    (place / "README.md").write_text("a card")
    return place


def key(folder, asked=("왜?",), precision=PRECISION, **settings):
    return answers_key(asked, ["hub/base", folder], folder, precision, {"seed": 0, **settings})


CHANGES = {
    "weights": lambda folder: os.utime(folder / "adapter_model.safetensors", ns=(0, 0)),
    "adapter config": lambda folder: (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16})),
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"added_tokens": []}'),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_another_key(folder, change):
    before = key(folder)
    (folder / "README.md").write_text("another card")
    assert key(folder) == before
    CHANGES[change](folder)
    assert key(folder) != before


def test_questions_settings_precision_and_base_count(folder):
    nf4 = resolve_precision(Recipe(base_precision="nf4"), None)
    said_otherwise = replace(PRECISION, why="in other words")
    assert key(folder, precision=said_otherwise) == key(folder)
    others = [
        key(folder, asked=("언제?",)),
        key(folder, seed=1),
        key(folder, precision=nf4),
        answers_key(("왜?",), ["hub/other", folder], folder, PRECISION, {"seed": 0}),
    ]
    assert len({key(folder), *others}) == 5


@pytest.mark.parametrize(
    "module", ["data.prompts", "inference.settings", "inference.static_decoder", "evaluation.predict.predictions"]
)
def test_the_code_between_question_and_answer_counts(monkeypatch, tmp_path, module):
    """A copy of the code in which one of its files is another has another stamp."""
    package, _, name = module.rpartition(".")
    before = answer_key.code_stamp()
    place = Path(shutil.copytree(Path("llm_qa", *package.split(".")), tmp_path / "copy"))
    for stamped in (package, module):
        changed = place / (f"{name}.py" if stamped == module else "__init__.py")
        monkeypatch.setattr(f"llm_qa.{stamped}.__file__", str(changed))
    answer_key.code_stamp.cache_clear()
    assert answer_key.code_stamp() == before
    (place / f"{name}.py").write_text("# another")
    answer_key.code_stamp.cache_clear()
    try:
        assert answer_key.code_stamp() != before
        monkeypatch.undo()
        answer_key.code_stamp.cache_clear()
        assert answer_key.code_stamp() == before
    finally:
        answer_key.code_stamp.cache_clear()
