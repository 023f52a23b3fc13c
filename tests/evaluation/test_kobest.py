"""KoBEST: the data's form, macro F1 by hand, the harness on small files, the published figures."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.evaluation.kobest import TASKS, check_data, load_harness, macro_f1, published_scores, score_model

from .kobest_data import kobest_row, make_kobest


def test_macro_f1_by_hand():
    """Class 0: precision 1/2, recall 1 -> 2/3; class 1: precision 1, recall 1/2 -> 2/3."""
    assert macro_f1([(0, 0), (1, 0), (1, 1)]) == pytest.approx(2 / 3)
    assert macro_f1([(0, 0), (1, 1)]) == 1.0
    assert macro_f1([(0, 1), (0, 1)]) == 0.0
    assert macro_f1([(0, 0), (0, 0), (1, 0), (1, 0)]) == pytest.approx((2 / 3 + 0) / 2)  # one class is never told


def test_macro_f1_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="the optional lm-eval is not installed")
    torch.manual_seed(0)
    pairs = torch.randint(4, (50, 2)).tolist()
    golds, told = zip(*pairs, strict=True)
    assert macro_f1(pairs) == pytest.approx(metrics.f1_score(golds, told, average="macro"))


def test_every_task_is_scored_offline(tmp_path, neox_folder, tokenizer, monkeypatch):
    pytest.importorskip("lm_eval", reason="the optional lm-eval is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = AutoModelForCausalLM.from_pretrained(neox_folder, dtype=torch.float32).eval()
    folder = make_kobest(tmp_path / "kobest")
    scores = score_model(model, tokenizer, folder, TASKS, num_fewshot=1, batch_size=4, limit=None)
    assert set(scores) == set(TASKS)
    for task, values in scores.items():
        assert 0 <= values["f1"] <= 1
        assert values["accuracy"] * 4 == pytest.approx(round(values["accuracy"] * 4)), task
    assert "accuracy_normalised" in scores["hellaswag"]


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
