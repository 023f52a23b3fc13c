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
        (("--dataloader-num-workers", "1", "--dataloader-persistent-workers"), "retrieval draws anew every epoch"),
        (("--retrieval", "0", "--retrieval-hit", "0.5"), "retrieval_hit would be ignored with retrieval 0"),
        (("--retrieval-hit", "1.5"), "retrieval_hit is 1.5 and must be at most 1"),
        (("--retrieval", "-1"), "retrieval is -1 and must be at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(train, tmp_path, flags, sentence):
    done = train(tmp_path / "run", *flags)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.fixture(scope="module")
def without(tmp_path_factory, train_with):
    """A run that was trained without references and evaluated with them, and what was printed."""
    run = tmp_path_factory.mktemp("runs") / "without"
    done = train_with(max_steps=4)(run)
    assert done.returncode == 0, done.stderr
    done = run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "4", "--base", "--retrieval", "2")
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_a_run_trained_without_references_is_also_asked_with_them(without):
    run, _ = without
    rows, scores = {}, {}
    for label in (files.TUNED, files.TUNED_WITH, files.BASE, files.BASE_WITH):
        folder = files.evaluation_dir(run, "test", label)
        rows[label] = files.read_jsonl(folder / files.PREDICTIONS)
        scores[label] = files.read_json(folder / files.SCORES)
    asked = [[(row["id"], row["question"], row["closest_training"]) for row in of] for of in rows.values()]
    assert all(one == asked[0] for one in asked), "the same questions"
    counts = {label: found["generation"].get("retrieval") for label, found in scores.items()}
    assert counts == {files.TUNED: None, files.TUNED_WITH: 2, files.BASE: None, files.BASE_WITH: 2}
    assert len({found["fingerprint"] for found in scores.values()}) == 4
    assert len({tuple(map(tuple, (row["reference_bits"] for row in of))) for of in rows.values()}) == 4


def test_kept_answers_with_references_are_not_those_of_another_number_of_them(without, tmp_path):
    run = shutil.copytree(without[0], tmp_path / "run")
    same = run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "4", "--retrieval", "2")
    assert "with-references: the answers of an earlier evaluation are scored again" in same.stdout
    other = run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "4", "--retrieval", "1")
    assert other.returncode == 0, other.stderr
    assert "\ntuned: the answers of an earlier evaluation" in f"\n{other.stdout}"
    assert "(retrieval 2 -> 1) and are replaced" in other.stdout


def test_the_report_has_them_side_by_side(without, tmp_path):
    done = run_script("scripts/report.py", without[0], "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page" / "report.md").read_text(encoding="utf-8")
    ranking = page[: page.index("By character F1;")]
    for name in ("without", "without with references", "base of without", "base of without with references"):
        assert f"| {name} |" in ranking
    assert "| nearest training answer |" in ranking
    assert "asked with up to 2 of the nearest training records before each question, which it was not trained" in page
    closeness = page[page.index("## Close to training texts") :]
    assert "| without with references |" in closeness[: closeness.index("Without: the records")]
    header = (tmp_path / "page" / "answers.csv").read_text(encoding="utf-8-sig").partition("\n")[0]
    assert "answer: tuned with references" in header


def test_a_run_that_cannot_be_asked_with_references_is_refused(trained, without, tmp_path):
    done = run_script("scripts/evaluate.py", "--run", trained[0], "--retrieval", "3")
    assert done.returncode == 2
    assert "was trained with retrieval 2 and is always asked so" in done.stderr
    other = shutil.copytree(without[0], tmp_path / "moved")
    environment = files.read_json(other / files.ENVIRONMENT)
    files.write_json(other / files.ENVIRONMENT, environment | {"data_sha256": "0" * 64})
    done = run_script("scripts/evaluate.py", "--run", other, "--retrieval", "3")
    assert done.returncode == 2
    assert "trained on is missing or changed" in done.stderr


def test_a_run_that_goes_on_in_an_epoch_draws_the_same_references(train_with, goes_on_the_same, tmp_path):
    often = {"num_train_epochs": 3, "eval_strategy": "no", "save_steps": 2, "save_total_limit": 100}
    train = train_with(**often, global_batch_size=4, retrieval=1, retrieval_hit=0.5, loss_on="everything")
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "documents of the first epoch have references at random, drawn anew each epoch" in done.stdout
    goes_on_the_same(train, tmp_path / "run", tmp_path / "again")


def test_a_run_that_also_joins_questions_goes_on_the_same_and_is_asked_both_ways(
    train_with, goes_on_the_same, tmp_path
):
    often = {"num_train_epochs": 3, "eval_strategy": "no", "save_steps": 2, "save_total_limit": 100}
    both = {"retrieval": 1, "retrieval_hit": 0.5, "join_questions": 0.4}
    train, run = train_with(**often, **both, global_batch_size=4), tmp_path / "run"
    done = train(run)
    assert done.returncode == 0, done.stderr
    assert "documents of the first epoch have references at random, drawn anew each epoch" in done.stdout
    assert "documents of the first epoch ask two questions, drawn anew each" in done.stdout
    goes_on_the_same(train, run, tmp_path / "again")
    done = run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    source = find_source(run=run)
    for row in files.read_jsonl(files.evaluation_dir(run, "test", files.JOINED) / files.PREDICTIONS):
        assert source.with_references(row["question"], "").count("참고 질문:") == 1
        assert not any(answer in source.with_references(row["question"], "") for answer in row["references"])
