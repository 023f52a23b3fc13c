"""The lines of Python in scripts/README.md that ask an exported folder with transformers alone."""

import re

import pytest
from command_line import ROOT
from test_export import make_run
from transformers import AutoModelForCausalLM

from llm_qa.export.model import export_model
from llm_qa.inference.generate import generate_answers
from llm_qa.inference.settings import GenerationSettings
from llm_qa.models.embedded import embedded_model
from llm_qa.models.loading import load_tokenizer


@pytest.fixture(scope="module")
def example():
    text = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code


def test_the_example_gives_the_answer_of_ask(example, tmp_path, monkeypatch, capsys):
    tokenizer = load_tokenizer(embedded_model())
    run = make_run(tmp_path / "run", embedded_model(), tokenizer)
    export_model(run, tmp_path / "exports" / "mine", "card")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exports" / "mine", dtype="auto")
    settings = GenerationSettings(max_new_tokens=128)
    asked = [("환불은 어떻게 하나요?", "")]
    (answer,) = generate_answers(model, load_tokenizer(tmp_path / "exports" / "mine"), asked, settings, quiet=True)
    assert printed == answer.text.strip()
    assert printed
