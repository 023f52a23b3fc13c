"""retrieval through the real command line: trained with references, and asked with the same kind of them everywhere."""

import re
import shutil

import pytest
from command_line import run_script
from transformers import AutoTokenizer

from llm_qa import files
from llm_qa.data.plain_prompt import render_prompt
from llm_qa.evaluation.predict.asking import find_source
from llm_qa.inference.generate import reference_bits
from llm_qa.inference.settings import GenerationSettings


@pytest.fixture(scope="module")
def train(train_with):
    """A function that trains a short run."""
    return train_with(max_steps=4, retrieval=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    """A finished run and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "with-references"
    done = train(run)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_a_training_example_has_references_and_the_run_keeps_the_training_records_alone(trained, prepared):
    run, screen = trained
    example = screen.partition("what is trained between ⟦ and ⟧:")[2]
    assert example.count("참고 질문:") == 2
    assert example.index("참고 답변:") < example.index("⟦"), "references have no label"
    kept = (run / files.REFERENCES).read_text(encoding="utf-8")
    assert kept == files.split_file(prepared, "train").read_text(encoding="utf-8")
    assert all(r["questions"][0] not in kept for r in files.read_jsonl(files.split_file(prepared, "test")))


def test_every_question_is_asked_with_references(trained, tmp_path):
    run, _ = trained
    source = find_source(run=run)
    ((_, context),) = source.fit([("3번은 어떻게 하나요?", "")], GenerationSettings(max_new_tokens=8))
    assert context.count("참고 질문:") == 2
    asked = run_script("scripts/ask.py", "--run", run, "--max-new-tokens", "4", "3번은 어떻게 하나요?")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.count("training record ") == 2, "the references are named after the answer"
    done = run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    scores = files.read_json(files.evaluation_dir(run, "test") / files.SCORES)
    assert scores["generation"]["retrieval"] == 2
    row = files.read_jsonl(files.evaluation_dir(run, "test") / files.PREDICTIONS)[0]
    ((question, context),) = source.fit([(row["question"], "")], GenerationSettings(max_new_tokens=4))
    model, tokenizer = source.load()
    triples = [(question, text, context) for text in row["references"]]
    assert row["reference_bits"] == pytest.approx(reference_bits(model, tokenizer, triples, quiet=True), rel=1e-4)
    done = run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "4", "--base")
    assert done.returncode == 0, done.stderr
    done = run_script("scripts/report.py", run, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page" / "report.md").read_text(encoding="utf-8")
    assert "Asked with up to 2 of the nearest training records before each question: " in page


def test_a_run_without_its_records_is_not_asked_in_another_way(trained, tmp_path):
    other = shutil.copytree(trained[0], tmp_path / "moved")
    (other / files.REFERENCES).unlink()
    done = run_script("scripts/ask.py", "--run", other, "왜?")
    assert done.returncode == 2
    assert "references.jsonl is missing: the run was trained with retrieval 2" in done.stderr
    (other / files.REFERENCES).write_text('{"questions": 3}\n')
    done = run_script("scripts/evaluate.py", "--run", other)
    assert done.returncode == 2
    assert "references.jsonl is damaged" in done.stderr


def test_an_exported_model_comes_with_the_records_and_says_how_it_is_asked(trained, tmp_path):
    done = run_script("scripts/export.py", "--run", trained[0], "--out", tmp_path / "exported", "--no-evaluate")
    assert done.returncode == 0, done.stderr
    assert "trained with retrieval 2, so a program that asks this model must put" in done.stdout
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "with up to 2 references before each question" in card
    assert "They go into the system message" in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    messages = [{"role": "system", "content": "참고 질문: 가"}, {"role": "user", "content": "왜?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render_prompt("왜?", "참고 질문: 가"), "the card's way is the trained prompt"
    assert (tmp_path / "exported" / files.REFERENCES).read_bytes() == (trained[0] / files.REFERENCES).read_bytes()


def test_a_dry_run_counts_the_references(train, tmp_path):
    counted = []
    for references in ("0", "2"):
        done = train(tmp_path / "run", "--dry-run", "--retrieval", references)
        assert done.returncode == 0, done.stderr
        counted.append(int(re.search(r"\(([\d,]+) tokens in", done.stdout)[1].replace(",", "")))
    assert counted[1] > 1.5 * counted[0]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--join-questions", "0.3"), "retrieval and join_questions cannot go together yet"),
        (("--retrieval", "0", "--retrieval-hit", "0.5"), "retrieval_hit would be ignored with retrieval 0"),
        (("--retrieval-hit", "1.5"), "retrieval_hit is 1.5 and must be at most 1"),
        (("--retrieval", "-1"), "retrieval is -1 and must be at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(train, tmp_path, flags, sentence):
    done = train(tmp_path / "run", *flags)
    assert done.returncode == 2
    assert sentence in done.stderr
