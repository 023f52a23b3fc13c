"""Training and evaluating architectures other than the project's own, through the real command line."""

import pytest
import torch
import yaml
from architectures import small_config
from command_line import run_script
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM

from llm_qa import files
from llm_qa.models.loading import save_tokenizer


@pytest.fixture(scope="module")
def train_small(tmp_path_factory, tokenizer, records):
    """Train a random model of an architecture on the records; returns (its run, what was printed)."""
    data = tmp_path_factory.mktemp("data") / "records.jsonl"
    files.write_jsonl(data, [record.to_json() for record in records])

    def train(name: str, *flags: str):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        config = small_config(name, len(tokenizer), initializer_range=0.1)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
        save_tokenizer(tokenizer, folder / "model")
        recipe = {"model": str(folder / "model"), "max_length": 128, "pack_length": 256, "global_batch_size": 2}
        recipe |= {"recompute": "none", "max_steps": 2, "logging_steps": 1, "optim": "adamw_torch"}
        (folder / "small.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        done = run_script("scripts/train.py", folder / "small.yaml", "--data", data, "--run", folder / "run", *flags)
        assert done.returncode == 0, done.stderr
        return folder / "run", done.stdout

    return train


def test_where_packed_documents_would_see_each_other_each_has_a_row(train_small):
    run, screen = train_small("falcon")
    assert (
        "attention: sdpa; packed documents would attend to each other (tested on a small FalconForCausalLM)" in screen
    )
    assert "one document per row: " in screen
    assert "not quantised to nf4" in screen
    assert files.read_json(run / "training.json")["finished"] is True
    done = run_script("scripts/evaluate.py", "--run", run, "--split", "test", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "packed documents would attend to each other" in done.stdout
    rows = files.read_jsonl(run / "eval" / "test" / "predictions.jsonl")
    assert all(bits > 0 for row in rows for bits in row["reference_bits"])


def test_an_architecture_without_sdpa_trains_packed_with_eager(train_small):
    if Gemma2ForCausalLM._supports_sdpa:
        pytest.skip("this transformers has sdpa for Gemma2")
    run, screen = train_small("gemma2")
    assert "attention: eager, as Gemma2ForCausalLM has no sdpa; packed documents stay apart" in screen
    assert "one document per row" not in screen
    done = run_script("scripts/evaluate.py", "--run", run, "--split", "test", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "attention: eager" in done.stdout


def test_a_mixture_of_experts_trains_fully_and_is_saved_as_trained(train_small):
    run, screen = train_small("mixtral", "--method", "full", "--base-precision", "fp32", "--learning-rate", "1e-2")
    assert "is saved and read back equal" in screen
    before = AutoModelForCausalLM.from_pretrained(run.parent / "model").state_dict()
    after = AutoModelForCausalLM.from_pretrained(run / "model").state_dict()
    experts = [name for name in before if ".experts." in name]
    assert experts
    assert not any(torch.equal(before[name], after[name]) for name in experts)
