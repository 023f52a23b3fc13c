"""Held-out phrasings from the command line to the report: marked everywhere as trained facts in new wordings."""

import pytest
from command_line import run_script

from llm_qa import files
from llm_qa.data.splits import load_split
from llm_qa.export.card import model_card


@pytest.fixture(scope="module")
def run(tmp_path_factory, neox_folder):
    folder = tmp_path_factory.mktemp("phrasings")
    rows = "".join(f"{n}번은 왜 그런가요?,{n}번 이유가 무엇인가요?,{n}번이라서 그렇습니다.\n" for n in range(30))
    (folder / "faq.csv").write_text("질문_1,질문_2,답변\n" + rows, encoding="utf-8")
    done = run_script("scripts/prepare_data.py", folder / "faq.csv", "--out", folder / "data", "--test", "phrasings")
    assert done.returncode == 0, done.stderr
    assert "test: one wording of each of 27 records in 27 groups" in done.stdout
    assert "texts in more than one split: 0 questions, 0 answers" in done.stdout
    recipe = ["scripts/recipes/tiny.yaml", "--model", neox_folder, "--base-precision", "fp32", "--max-length", "256"]
    recipe += ["--pack-length", "256", "--max-steps", "2"]
    trained = run_script("scripts/train.py", *recipe, "--data", folder / "data", "--run", folder / "run")
    assert trained.returncode == 0, trained.stderr
    done = run_script("scripts/evaluate.py", "--run", folder / "run", "--limit", "9", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "are in the training data" not in done.stdout, "the wordings are new"
    return folder / "run"


def test_the_report_says_that_the_facts_were_trained(run, tmp_path):
    done = run_script("scripts/report.py", run, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test split (trained facts, new wordings), 9 records" in done.stdout
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.splitlines()[2].startswith("**On trained facts, new wordings: not compared with its base")
    assert "test split (trained facts, new wordings) of" in page
    assert "test split (trained facts, new wordings) of" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_card_of_an_exported_model_says_so_too(run):
    assert "On the 9 questions of the test split (trained facts, new wordings), 9 records:" in model_card(run)


def test_each_test_question_is_of_a_trained_record(run):
    data = run.parent / "data"
    trained = {record.id: record for record in load_split(data, "train")}
    for record in load_split(data, "test"):
        assert trained[record.id].answers == record.answers
        assert record.questions[0] not in trained[record.id].questions
    assert files.read_json(data / files.MANIFEST)["options"]["held_out"] == "phrasings"


def test_what_cleaning_empties_is_not_asked(tmp_path):
    rows = "".join(f"{n}번은 왜?,{n}번 이유는?,{n}번이라서.\n" for n in range(30)) + "그리고?,왜 그리고?,그리고.\n"
    (tmp_path / "faq.csv").write_text("질문_1,질문_2,답변\n" + rows, encoding="utf-8")
    (tmp_path / "stopwords.txt").write_text("그리고\n", encoding="utf-8")
    flags = ["--out", tmp_path / "d", "--test", "phrasings", "--validation", "0", "--cleaning", "original"]
    flags += ["--stopwords", tmp_path / "stopwords.txt"]
    done = run_script("scripts/prepare_data.py", tmp_path / "faq.csv", *flags)
    assert done.returncode == 0, done.stderr
    trained = {record.id for record in load_split(tmp_path / "d", "train")}
    assert len(trained) == 30
    assert {record.id for record in load_split(tmp_path / "d", "test")} <= trained


def test_a_file_with_one_wording_each_is_refused(tmp_path):
    (tmp_path / "faq.csv").write_text("질문,답변\n" + "".join(f"{n}?,{n}\n" for n in range(30)), encoding="utf-8")
    done = run_script("scripts/prepare_data.py", tmp_path / "faq.csv", "--out", tmp_path / "d", "--test", "phrasings")
    assert done.returncode == 2
    assert "--test phrasings has nothing to hold out" in done.stderr
    done = run_script("scripts/prepare_data.py", tmp_path / "faq.csv", "--out", tmp_path / "d", "--test", "words")
    assert done.returncode == 2
    assert "words is neither a share, like 0.1, nor the word phrasings" in done.stderr
