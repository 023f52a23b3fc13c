"""evaluate_kobest.py through the real command line, on small files of KoBEST's form and a small run."""

import pytest
import torch
import yaml
from command_line import run_script
from evaluation.fixtures import make_evaluation, make_rows
from evaluation.kobest_data import make_kobest
from transformers import AutoModelForCausalLM

from llm_qa import files
from llm_qa.data.readers.kobest import TASKS
from llm_qa.evaluation.statistics.choices import compare_choices
from llm_qa.models.loading import save_tokenizer


@pytest.fixture
def run(tmp_path, neox_folder, tokenizer):
    """A finished run of all weights: the base is the small GPT-NeoX, the tuned model the same, its weights shaken."""
    folder = tmp_path / "runs" / "small"
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(neox_folder, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder / files.MODEL)
    save_tokenizer(tokenizer, folder / files.MODEL)
    recipe = {"model": str(neox_folder), "method": "full", "base_precision": "fp32"}
    files.write_text(folder / files.RECIPE, yaml.safe_dump(recipe))
    return folder


def evaluate(run, kobest, *more, **variables):
    command = ["scripts/evaluate_kobest.py", "--run", run, "--kobest-dir", kobest, *more]
    return run_script(*command, **variables)


@pytest.mark.optional
def test_both_models_are_scored_compared_and_reported(run, tmp_path):
    pytest.importorskip("lm_eval", reason="the optional lm-eval is not installed")
    kobest, cache = make_kobest(tmp_path / "kobest", 12), str(tmp_path / "cache")
    done = evaluate(run, kobest, "--limit", "10", HF_DATASETS_CACHE=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warn" not in done.stderr.lower()
    assert "Overwriting default" not in done.stderr + done.stdout
    assert "base model on the same tasks: about " in done.stdout
    folder = files.evaluation_dir(run, files.KOBEST)
    scores, rows = files.read_json(folder / files.SCORES), files.read_jsonl(folder / files.PREDICTIONS)
    assert list(scores["tasks"]) == list(TASKS)
    assert len(rows) == 5 * 10
    assert any(row["base"] != row["tuned"] for row in rows), "two models"
    for task, measures in scores["tasks"].items():
        columns = zip(*[(r["right"], r["base"], r["tuned"]) for r in rows if r["task"] == task], strict=True)
        assert measures["f1"] == compare_choices(*columns), "from the file it can be had again"
        assert f"\n{task} " in done.stdout
    assert "–" in done.stdout, "nothing is published of this model"

    # one task with worked examples takes the place of what was there
    alone = evaluate(run, kobest, "--tasks", "copa", "--shots", "2", "--batch-size", "3", HF_DATASETS_CACHE=cache)
    assert alone.returncode == 0, alone.stderr[-3000:]
    scores = files.read_json(folder / files.SCORES)
    assert list(scores["tasks"]) == ["copa"]
    assert (scores["num_fewshot"], scores["tasks"]["copa"]["f1"]["records"]) == (2, 12)

    for label in (files.TUNED, files.BASE):
        make_evaluation(run, make_rows(tuned=label == files.TUNED), label=label)
    report = run_script("scripts/report.py", run, "--out", tmp_path / "report")
    assert report.returncode == 0, report.stderr
    assert "| copa, macro F1 ↑ |" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots", "-1"], "--shots: -1 is not a whole number of at least 0"),
        (["--batch-size", "0"], "--batch-size: 0 is not"),
        (["--limit", "0"], "--limit: 0 is not"),
        (["--kobest-dir", "nowhere"], "--kobest-dir nowhere has no boolq/test.jsonl"),
        (["--run", "nowhere"], "nowhere is not a run"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, message):
    done = evaluate(run, make_kobest(tmp_path / "kobest"), *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
