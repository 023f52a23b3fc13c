"""KoBEST: the data's form, the harness on small files, the published figures."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluation.kobest_data import kobest_row, make_kobest
from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.readers.kobest import TASKS
from llm_qa.evaluation.kobest import check_data, compare_tasks, load_harness, published_scores, score_model
from llm_qa.evaluation.statistics.choices import macro_f1


@pytest.mark.optional
def test_every_task_is_scored_offline(tmp_path, neox_folder, tokenizer, monkeypatch):
    pytest.importorskip("lm_eval", reason="the optional lm-eval is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = AutoModelForCausalLM.from_pretrained(neox_folder, dtype=torch.float32).eval()
    folder = make_kobest(tmp_path / "kobest")
    chosen = score_model(model, tokenizer, folder, TASKS, num_fewshot=1, batch_size=4, limit=None)
    assert set(chosen) == set(TASKS)
    for task, choices in chosen.items():
        rows = files.read_jsonl(folder / task / "test.jsonl")
        assert [choice.right for choice in choices] == [row["label"] for row in rows], "in the file's order"
        assert all((choice.right_normalised is None) == (task != "hellaswag") for choice in choices)
    scores = compare_tasks(chosen, chosen)
    for task, measures in scores.items():
        pairs = [(choice.right, choice.chosen_class) for choice in chosen[task]]
        assert measures["f1"]["base"] == measures["f1"]["tuned"] == macro_f1(pairs)
        assert measures["accuracy"]["tuned"] == sum(right == told for right, told in pairs) / 4
        assert measures["f1"]["p_value"] == 1.0
    assert set(scores["hellaswag"]) == {"f1", "accuracy", "accuracy_normalised"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "copa" / "test.jsonl").unlink(), "has no copa/test.jsonl"),
        (lambda folder: (folder / "boolq" / "train.jsonl").unlink(), "has no boolq/train.jsonl"),
        (lambda folder: files.write_text(folder / "wic" / "test.jsonl", ""), "is empty"),
        (lambda folder: files.write_jsonl(folder / "wic" / "test.jsonl", [{"word": "눈"}]), "has no context_1"),
        (lambda folder: files.write_jsonl(folder / "wic" / "test.jsonl", [[1]]), "line 1, has no"),
    ],
)
def test_data_of_another_form_is_refused_before_anything_is_loaded(tmp_path, spoil, message):
    folder = make_kobest(tmp_path)
    assert check_data(folder, TASKS, 1) == dict.fromkeys(TASKS, 4)
    spoil(folder)
    with pytest.raises(UserError, match=message):
        check_data(folder, TASKS, 1)


def test_without_examples_no_training_file_is_needed(tmp_path):
    files.write_jsonl(tmp_path / "boolq" / "test.jsonl", [kobest_row("boolq", 0)])
    assert check_data(tmp_path, ("boolq",), 0) == {"boolq": 1}


def test_a_missing_harness_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[kobest\]'"):
        load_harness()


def test_published_figures_are_by_model_task_and_number_of_examples():
    assert published_scores("EleutherAI/polyglot-ko-12.8b", "copa", 0) == 0.7937
    assert published_scores("EleutherAI/polyglot-ko-1.3b", "sentineg", 50) == 0.7851
    assert published_scores("EleutherAI/polyglot-ko-1.3b", "wic", 0) is None
    assert published_scores("EleutherAI/polyglot-ko-1.3b", "copa", 3) is None
    assert published_scores("skt/kogpt2-base-v2", "copa", 0) is None
