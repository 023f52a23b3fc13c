"""Sample answers: training is the same with them and without; they reach the screen, their file and trackers."""

import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from command_line import run_script
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState

from llm_qa import files
from llm_qa.config.recipe import make_recipe
from llm_qa.data.packing import encode_as_given
from llm_qa.data.prompts import encode_prompts
from llm_qa.inference.generate import generate_answers, generate_batch
from llm_qa.inference.settings import GenerationSettings
from llm_qa.models.fast.model import FastNeoX
from llm_qa.training.callbacks import samples
from llm_qa.training.callbacks.samples import Sample, SampleAnswers, as_text, choose_samples
from llm_qa.training.strategy import Strategy
from llm_qa.widths import display_width

ARGUMENTS = SimpleNamespace(bf16=False, fp16=False, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("raw")
    files.write_jsonl(folder / "raw.jsonl", [record.to_json() for record in records])
    done = run_script("scripts/prepare_data.py", folder / "raw.jsonl", "--out", folder / "data", "--validation", "0.2")
    assert done.returncode == 0, done.stderr
    return folder / "data"


@pytest.fixture(scope="module")
def training(tmp_path_factory, neox_folder, prepared):
    """Train with flags into a run of that name; returns the folder."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = {"model": str(neox_folder), "base_precision": "nf4", "lora_dropout": 0.2, "max_length": 256}
    recipe |= {"pack_length": 256, "learning_rate": 1e-2, "max_steps": 6, "logging_steps": 1, "save_steps": 2}
    (folder / "small.yaml").write_text(yaml.safe_dump({**recipe, "keep": "last"}), encoding="utf-8")

    def train(name: str, *flags: str):
        command = ("scripts/train.py", folder / "small.yaml", "--data", prepared, "--run", folder / name, *flags)
        done = run_script(*command, launch=True)
        assert done.returncode == 0, done.stderr
        return folder / name, done.stdout

    return train


def computed(run) -> list[dict]:
    """What a log says of the training itself."""
    kept = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "validation_loss")
    return [{key: line[key] for key in kept if key in line} for line in files.read_jsonl(run / files.LOG)]


def test_training_and_resume_are_the_same_with_samples_and_without(training):
    without, screen = training("without", "--sample-answers", "0")
    assert not (without / files.SAMPLES).exists()
    assert "sample: " not in screen
    run, screen = training("with", "--sample-answers", "2")
    assert [line for line in computed(run) if len(line) > 1] == [line for line in computed(without) if len(line) > 1]
    answered = files.read_jsonl(run / files.SAMPLES)
    assert {line["step"] for line in answered} >= {2, 6}
    assert len({line["question"] for line in answered}) == 2
    assert all(line.keys() == {"step", "question", "reference", "answer", "stopped"} for line in answered)
    assert screen.count("sample: ") == len(answered)

    shutil.rmtree(run / files.CHECKPOINTS / "checkpoint-6")
    shutil.rmtree(run / files.ADAPTER)
    (run / files.TRAINING).unlink()
    again, screen = training("with", "--sample-answers", "1")
    assert "going on from" in screen
    assert [line for line in computed(again) if len(line) > 1] == [line for line in computed(without) if len(line) > 1]
    kept = [line for line in answered if line["step"] <= 4]
    assert files.read_jsonl(run / files.SAMPLES)[: len(kept)] == kept
    assert [line["step"] for line in files.read_jsonl(run / files.SAMPLES)[len(kept) :]] == [6]


def test_the_questions_are_spread_over_the_validation_records_and_asked_as_in_training(records, tokenizer, capsys):
    data = SimpleNamespace(validation=records, encode=encode_as_given)
    chosen = choose_samples(tokenizer, data, make_recipe({"sample_answers": 3}), Strategy())
    expected = [records[number] for number in (0, 6, 13)]
    assert [sample.question for sample in chosen] == [record.questions[0] for record in expected]
    assert [sample.reference for sample in chosen] == [record.answers[0] for record in expected]
    assert [s.prompt for s in chosen] == encode_prompts(tokenizer, [(record.questions[0], "") for record in expected])
    assert choose_samples(tokenizer, data, make_recipe({"sample_answers": 0}), Strategy()) == []
    assert len(choose_samples(tokenizer, data, make_recipe({"sample_answers": 99}), Strategy())) == 20
    assert capsys.readouterr().out == ""
    assert choose_samples(tokenizer, data, make_recipe({}), Strategy(processes=2, zero_stage=3)) == []
    assert (
        capsys.readouterr().out
        == "no sample answers: under ZeRO-3 no process has the whole model that generates them\n"
    )


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_answers_take_no_more_than_their_share_of_the_time_but_come_first_and_last(tmp_path, monkeypatch, tokenizer):
    clock = Clock()
    monkeypatch.setattr(samples, "time", clock)
    callback = SampleAnswers(tmp_path, tokenizer, [Sample("q", "r", [1])], {})

    def slow(args, model):
        clock.now += 10
        return [SimpleNamespace(text="a", stopped=True)]

    callback._answers = slow
    state = TrainerState(max_steps=10)
    callback.on_train_begin(ARGUMENTS, state, TrainerControl())
    for step in range(1, 11):
        clock.now += 50
        state.global_step = step
        callback.on_evaluate(ARGUMENTS, state, TrainerControl())
    # after 10 s of answers the next ones wait until 200 s have passed, after 20 s until 400 s
    assert [line["step"] for line in files.read_jsonl(tmp_path / files.SAMPLES)] == [1, 4, 8, 10]


def test_a_gpu_without_room_ends_the_answers_and_not_the_training(tmp_path, tokenizer, capsys):
    def full(args, model):
        raise torch.OutOfMemoryError

    callback = SampleAnswers(tmp_path, tokenizer, [Sample("q", "r", [1])], {})
    callback._answers = full
    callback.on_train_begin(ARGUMENTS, TrainerState(), TrainerControl())
    callback.on_evaluate(ARGUMENTS, TrainerState(), TrainerControl())
    callback.on_evaluate(ARGUMENTS, TrainerState(), TrainerControl())
    assert capsys.readouterr().out.count("no sample answers from here on") == 1


def test_answers_are_those_of_evaluation_and_the_mode_and_random_numbers_stay(
    tmp_path, neox_folder, tokenizer, records
):
    model = AutoModelForCausalLM.from_pretrained(neox_folder)
    chosen = choose_samples(
        tokenizer, SimpleNamespace(validation=records, encode=encode_as_given), make_recipe({}), Strategy()
    )
    callback = SampleAnswers(tmp_path, tokenizer, chosen, {})
    questions = [(sample.question, "") for sample in chosen]
    expected = generate_answers(model, tokenizer, questions, samples.SETTINGS)
    for training in (True, False):
        model.train(training)
        before = torch.get_rng_state()
        assert callback._answers(ARGUMENTS, model) == expected
        assert torch.equal(before, torch.get_rng_state())
        assert model.training is training
    assert torch.is_grad_enabled()


def test_a_model_on_the_fast_path_answers_as_before(neox_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(neox_folder).eval()
    prompts = encode_prompts(tokenizer, [("벽지가 들뜨면?", ""), ("결로는 환기로 줄입니까?", "")])
    settings = GenerationSettings(max_new_tokens=8)
    expected = generate_batch(model, tokenizer, prompts, settings)
    FastNeoX(model, torch.float32, 64, 64, compiled=False).install()
    assert generate_batch(model, tokenizer, prompts, settings) == expected


def test_a_line_fits_the_screen():
    line = as_text("벽지가 들뜨는 이유는 무엇인가요? 그리고 어떻게 고치나요?", "습기 때문입니다.\n" * 20)
    assert line.startswith("sample: 벽지가 들뜨는 이유는 무엇인가… → 습기 때문입니다. 습기")
    assert 78 <= display_width(line) <= 80
    assert as_text("왜?", "습기") == "sample: 왜? → 습기"
