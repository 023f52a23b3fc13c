"""submit.py from test.csv to submission.csv, on a small run and a small local embedder."""

import csv

import numpy as np
import pytest
import yaml
from command_line import run_script
from evaluation.embedders import make_embedder

from llm_qa import files

LETTERS = "벽지가들뜨면풀을다시바릅니다결로는환기줄입마루7일말린뒤깝석고보드를덧대않습0123456789그리도봅"


@pytest.fixture
def run(tmp_path, neox_folder):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / files.MODEL).symlink_to(neox_folder)
    files.write_text(
        folder / files.RECIPE,
        yaml.safe_dump({"model": str(neox_folder), "method": "full", "base_precision": "fp32"}),
    )
    return folder


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("id,질문\nTEST_000,결로는 왜 생기나요?\nTEST_001,마루는 언제 까나요?\n", encoding="utf-8-sig")
    return path


@pytest.mark.optional
def test_every_question_becomes_a_vector(run, questions, tmp_path):
    pytest.importorskip("sentence_transformers", reason="the optional sentence-transformers is not installed")
    out, kept = tmp_path / "submission.csv", tmp_path / "answers.csv"
    more = ["--embedder", make_embedder(tmp_path / "embedder", LETTERS), "--max-new-tokens", "8", "--answers", kept]
    done = run_script("scripts/submit.py", "--run", run, "--file", questions, "--out", out, *more)
    assert done.returncode == 0, done.stderr
    with open(out, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", *(f"vec_{i}" for i in range(512))]
    assert [row[0] for row in rows] == ["TEST_000", "TEST_001"]
    assert np.linalg.norm(np.array([row[1:] for row in rows], dtype=np.float64), axis=1) == pytest.approx(1, abs=1e-4)
    assert kept.read_text(encoding="utf-8-sig").startswith("id,질문,답변\nTEST_000,")
    assert "dimensions, the competition" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "nowhere.csv"], "nowhere.csv"),
        (["--batch-size", "0"], "--batch-size: 0 is not a whole number of at least 1"),
        (["--out", "{file}"], "would overwrite the questions"),
        (["--out", "a.csv", "--answers", "./a.csv"], "--answers and --out are both a.csv"),
    ],
)
def test_bad_input_is_one_sentence(run, questions, arguments, message):
    arguments = [text.format(file=questions) for text in arguments]
    done = run_script("scripts/submit.py", "--run", run, "--file", questions, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
