"""train.py --data with raw files: the whole summary is shown, and every flag that a sentence names is taken."""

import pytest
from command_line import run_script

TRAIN = ["scripts/train.py", "scripts/recipes/tiny.yaml", "--dry-run"]
HALF = [f'{{"question": "{i}번 자재는 왜 들뜨나요?", "answer": "{i}번 풀이 말라서 그렇습니다."}}' for i in range(20)]


@pytest.fixture
def train(tmp_path):
    def run(name, lines, *flags, script=TRAIN):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return run_script(*script, *flags, path, LLM_QA_DATA=str(tmp_path / "data"))

    return run


def test_rows_that_are_not_used_are_counted_by_reason(train):
    broken = [f'{{"question": "{i}번?", "answer": ["", null], "note": 1}}' for i in range(20)]
    done = train("d.jsonl", [*HALF, *broken], "--data")
    assert done.returncode == 0, done.stderr
    assert "rejected: 20 no answer (each row with its reason: " in done.stdout
    assert "texts in more than one split: 0 questions, 0 answers" in done.stdout


def test_the_remedies_that_are_named_work_in_train_too(train, tmp_path):
    rows = ["문의,회신,메모", *(f"{i}번 자재는 방수인가요?,{('예', '아니요')[i % 2]},x" for i in range(20))]
    done = train("faq.csv", rows, "--data")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "no question column that is recognised among 문의, 회신, 메모: name it with --question-column" in done.stderr
    named = ["--question-column", "문의", "--answer-column", "회신"]
    done = train("faq.csv", rows, *named, "--data")
    assert done.returncode == 2
    assert "set --group-by questions if answers like that are meant to repeat" in done.stderr
    done = train("faq.csv", rows, *named, "--group-by", "questions", "--data")
    assert done.returncode == 0, done.stderr
    assert "faq.csv: columns ignored: 메모" in done.stdout
    prepare = ["scripts/prepare_data.py", "--out", tmp_path / "out"]
    done = train("faq.csv", rows, *named, "--group-by", "questions", "--", script=prepare)
    assert done.returncode == 0, done.stderr


def test_a_length_beyond_the_context_ends_before_anything_is_read(train):
    done = train("missing", [], "--max-length", "2000", "--pack-length", "2000", "--data")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert (
        "--max-length 2000 is longer than the context of embedded, 1024 tokens: set it to 1024 or less." in done.stderr
    )
