"""train.py, evaluate.py and ask.py through the real command line, on a small checkpoint and a handful of records."""

import csv
import json
import shutil
import signal
import subprocess
import time

import pytest
import torch
import yaml
from command_line import ACCELERATE, ROOT, environment, run_script
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_qa import files
from llm_qa.data.packing import tokenize_records
from llm_qa.data.prompts import encode_prompts
from llm_qa.data.splits import load_split


@pytest.fixture(scope="module")
def raw_csv(tmp_path_factory, records):
    """The records as a user's CSV in the original's wide layout."""
    path = tmp_path_factory.mktemp("raw") / "train.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "질문_1", "질문_2", "category", "답변_1", "답변_2"])
        writer.writerows([r.id, *r.questions, r.category, *r.answers] for r in records)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, raw_csv):
    """Prepared data of the records."""
    out = tmp_path_factory.mktemp("data") / "small"
    done = run_script("scripts/prepare_data.py", raw_csv, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, neox_folder):
    """A recipe for the small checkpoint: nf4, LoRA with dropout, accumulation, mid-epoch checkpoints."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    values = {
        "model": str(neox_folder),
        "base_precision": "nf4",
        "max_length": 256,
        "pack_length": 256,
        "global_batch_size": 2,
        "micro_batch_size": 1,
        "recompute": "all",
        "learning_rate": 1e-2,
        "num_train_epochs": 3,
        "logging_steps": 1,
        "save_steps": 4,
        "optim": "adamw_torch",
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe, prepared):
    """A finished run and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "small"
    done = run_script("scripts/train.py", recipe, "--data", prepared, "--run", run, launch=True)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_the_screen_says_what_was_chosen_and_shows_the_trained_span(trained):
    _, screen = trained
    for part in (
        "base nf4, products in fp32 on the CPU",
        "### 질문:",
        "⟦",
        "<|endoftext|>⟧",
        "parameters: ",
        "query_key_value: ",
        "tok/s",
        "ETA",
        "validation loss",
        "is saved and read back equal",
    ):
        assert part in screen


def test_the_run_folder_holds_what_people_depend_on(trained, prepared, tokenizer):
    run, _ = trained
    assert {"recipe.yaml", "environment.json", "log.jsonl", "training.json", "checkpoints", "adapter"} <= {
        path.name for path in run.iterdir()
    }
    training = files.read_json(run / "training.json")
    pairs, _ = tokenize_records(tokenizer, load_split(prepared, "train"), 256)
    assert training["finished"] is True
    assert training["epochs"] == 3
    assert training["tokens"] == 3 * len(pairs.tokens), "real tokens, padding never"
    answers = sorted(pairs.lengths - pairs.prompt_lengths)
    assert training[files.ANSWER_TOKENS] in answers[int(0.98 * len(answers)) :], "99 of 100 are no longer"
    assert training["mfu"] is None, "a CPU's peak is not known, so there is no guess"
    assert len(training["peak_memory_bytes"]) == 1
    log = files.read_jsonl(run / "log.jsonl")
    steps = [line["step"] for line in log if "loss" in line]
    assert steps[0] == 1
    assert steps[-1] <= training["steps"]
    assert any("validation_loss" in line for line in log)
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0] - 0.3, "three epochs on eighty pairs must teach something"


def test_no_pickle_in_the_adapter(trained):
    run, _ = trained
    assert not [path for path in (run / "adapter").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_adapter_loads_in_plain_peft_and_changes_the_answers(trained, neox_folder):
    run, _ = trained
    base = AutoModelForCausalLM.from_pretrained(neox_folder)
    ids = AutoTokenizer.from_pretrained(run / "adapter")("### 질문: 결로?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, run / "adapter")(input_ids=ids).logits
    assert (before - after).abs().max() > 0.1
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "language: ko" in card
    assert "### 답변:" in card


def test_the_adapters_chat_template_is_the_prompt_that_was_trained(trained):
    run, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    messages = [{"role": "user", "content": "결로가 왜 생기나요?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompts(tokenizer, [("결로가 왜 생기나요?", "")])[0]


def test_the_same_command_on_a_finished_run_says_so(trained, recipe, prepared):
    run, _ = trained
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    done = run_script("scripts/train.py", recipe, "--data", prepared, "--run", run)
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_a_stopped_run_goes_on_to_the_same_adapter_bit_for_bit(trained, recipe, prepared, tmp_path):
    """SIGTERM in the middle of an epoch: exit code 75; the same command again ends where the undisturbed run did."""
    undisturbed, _ = trained
    run = tmp_path / "small"
    command = [*ACCELERATE[:1], "scripts/train.py", str(recipe), "--data", str(prepared), "--run", str(run)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    deadline = time.time() + 200
    while time.time() < deadline and not (run / "log.jsonl").exists():
        time.sleep(0.05)
    while time.time() < deadline and (run / "log.jsonl").read_text(encoding="utf-8").count("\n") < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    screen, _ = process.communicate(timeout=200)
    assert process.returncode == 75, screen
    assert "everything is saved" in screen
    assert files.read_json(run / "training.json")["finished"] is False
    assert not (run / "adapter").exists()

    again = run_script("scripts/train.py", recipe, "--data", prepared, "--run", run)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout
    ours, theirs = (load_file(r / "adapter" / "adapter_model.safetensors") for r in (run, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    numbers = [
        [(line["step"], line.get("loss"), line.get("validation_loss"), line.get("tokens")) for line in log]
        for log in (files.read_jsonl(run / "log.jsonl"), files.read_jsonl(undisturbed / "log.jsonl"))
    ]
    assert numbers[0] == numbers[1]


def test_the_adapter_is_the_best_checkpoints_when_training_went_past_it(recipe, prepared, tmp_path):
    run = tmp_path / "past"
    flags = (recipe, "--data", prepared, "--save-steps", "2", "--early-stopping", "2", "--run")
    done = run_script("tests/train_getting_worse.py", *flags, run)
    assert done.returncode == 0, done.stderr
    log, summary = files.read_jsonl(run / "log.jsonl"), files.read_json(run / "training.json")
    losses = {line["step"]: line["validation_loss"] for line in log if "validation_loss" in line}
    assert list(losses) == [2, 4, 6], "two evaluations without a better one"
    assert summary["steps"] == 6
    assert summary["kept"] == {"step": 2, "validation_loss": losses[2]}
    assert f"it holds the best checkpoint (step 2, validation loss {losses[2]:.4f}" in done.stdout
    kept = run / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors"
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == kept.read_bytes()
    assert "its weights are those of step 2" in (run / "adapter" / "README.md").read_text(encoding="utf-8")

    last = tmp_path / "last"
    done = run_script("tests/train_getting_worse.py", *flags, last, "--keep", "last")
    assert done.returncode == 0, done.stderr
    assert files.read_json(last / "training.json")["kept"] is None
    newest = last / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors"
    assert (last / "adapter" / "adapter_model.safetensors").read_bytes() == newest.read_bytes() != kept.read_bytes()

    # The line at the end of the first run names --keep last: it does what it says to that run, and can be undone.
    for keep, expected in (("last", newest), ("best", kept)):
        done = run_script("tests/train_getting_worse.py", *flags, run, "--keep", keep)
        assert done.returncode == 0, done.stderr
        assert "is already finished" not in done.stdout
        assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == expected.read_bytes()
    assert "is already finished" in run_script("tests/train_getting_worse.py", *flags, run).stdout


def test_a_known_gpu_is_told_its_figures_before_and_the_measured_ones_after(recipe, prepared, neox_folder, tmp_path):
    run = tmp_path / "known"
    flags = (neox_folder, recipe, "--data", prepared, "--run", run)
    done = run_script("tests/train_on_known_gpu.py", *flags, "--num-train-epochs", "1")
    assert done.returncode == 0, done.stderr
    before, after = (done.stdout.index(text) for text in ("\npredicted: peak ", "\npredicted peak "))
    assert before < done.stdout.index(" 1/") < after
    assert "; measured peak " in done.stdout[after:]
    log, summary = files.read_jsonl(run / "log.jsonl"), files.read_json(run / "training.json")
    assert log[0]["predicted"] == log[-1]["predicted"] == summary["predicted"]
    assert log[-1]["measured"] == summary["measured"]
    assert summary["measured"]["peak_bytes"] == max(summary["peak_memory_bytes"])
    rates = sorted(line["tokens_per_second"] for line in log[1:] if "loss" in line)
    assert rates[0] <= summary["measured"]["tokens_per_second"] <= rates[-1]


def test_few_updates_are_warned_of_and_a_cpu_is_predicted_nothing(trained):
    run, screen = trained
    updates = files.read_json(run / "training.json")["steps"]
    assert f"warning: {updates} updates in all are few to learn from" in screen
    assert "lower --global-batch-size (now 2), raise --num-train-epochs (now 3; " in screen
    assert "predicted" not in screen
    assert not any("predicted" in line for line in files.read_jsonl(run / "log.jsonl"))


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(trained, recipe, prepared):
    run, _ = trained
    done = run_script("scripts/train.py", recipe, "--data", prepared, "--run", run, "--learning-rate", "1e-3")
    assert done.returncode == 2
    assert "learning_rate 0.01 -> 0.001" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lerning-rate", "1"], "lerning_rate is not a known key (did you mean learning_rate?)"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--resume", "nowhere"], "there is no such checkpoint folder"),
        (["--report-to", "nonsense"], "--report-to nonsense: nonsense is not supported"),
    ],
)
def test_bad_flags_end_with_code_2_and_one_sentence(recipe, tmp_path, flags, sentence):
    done = run_script("scripts/train.py", recipe, "--run", tmp_path / "run", *flags)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_large_model_without_a_gpu_says_what_works_here_instead():
    done = run_script("scripts/train.py", "scripts/recipes/qlora_12.8b.yaml")
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr
    assert "scripts/recipes/tiny.yaml trains a small practice model" in done.stderr


@pytest.fixture(scope="module")
def evaluated(trained):
    """The run with its base and tuned predictions, evaluated through the command line."""
    run, _ = trained
    done = run_script("scripts/evaluate.py", "--run", run, "--base", "--max-new-tokens", "16")
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_evaluation_scores_base_and_tuned_on_the_same_questions(evaluated, prepared):
    run, _ = evaluated
    records = load_split(prepared, "test")
    rows = {}
    for label, folder in (("base", "test-base"), ("tuned", "test")):
        rows[label] = files.read_jsonl(run / "eval" / folder / "predictions.jsonl")
        scores = files.read_json(run / "eval" / folder / "scores.json")
        assert scores["label"] == label
        assert scores["data_sha256"] == files.sha256_file(prepared / "test.jsonl")
        assert len(rows[label]) == sum(len(r.questions) for r in records)
    questions = [[(row["id"], row["question_index"]) for row in rows[label]] for label in rows]
    assert questions[0] == questions[1]
    bits = {label: sum(sum(row["reference_bits"]) for row in rows[label]) for label in rows}
    assert bits["tuned"] < bits["base"], "training must make the references of held-out records likelier"


def test_ask_answers_one_question_and_a_file(trained, tmp_path):
    run, _ = trained
    done = run_script("scripts/ask.py", "--run", run, "결로는 어떻게 하나요?", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

    questions = tmp_path / "test.csv"
    questions.write_text('id,질문\nTEST_000,결로는 왜 생기나요?\nTEST_001,"마루는, 언제 까나요?"\n', encoding="cp949")
    out = tmp_path / "answers.csv"
    done = run_script("scripts/ask.py", "--run", run, "--file", questions, "--out", out, "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    with open(out, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["TEST_000", "TEST_001"]
    assert [row["질문"] for row in rows] == ["결로는 왜 생기나요?", "마루는, 언제 까나요?"]
    assert all("답변" in row for row in rows)


def test_raw_files_are_prepared_first_and_kogpt2s_architecture_trains_fully(gpt2_folder, raw_csv, tmp_path):
    run = tmp_path / "full"
    recipe = tmp_path / "full.yaml"
    values = {
        "model": str(gpt2_folder),
        "method": "full",
        "base_precision": "fp32",
        "pack_length": 256,
        "max_length": 256,
    }
    recipe.write_text(yaml.safe_dump({**values, "num_train_epochs": 1, "learning_rate": 1e-3}), encoding="utf-8")
    done = run_script("scripts/train.py", recipe, "--data", raw_csv, "--run", run, LLM_QA_DATA=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.config.model_type == "gpt2"
    assert (run / "model" / "tokenizer.json").exists()
    shutil.rmtree(run / "checkpoints")
    assert json.loads((run / "training.json").read_text(encoding="utf-8"))["trainable_parameters"] == sum(
        p.numel() for p in model.parameters()
    )
