"""Sentence embeddings on a small local model; the submission's form."""

import csv

import numpy as np
import pytest

from evaluation.embedders import make_embedder
from evaluation.fixtures import make_rows
from llm_qa.evaluation.metrics.embedding import with_cosines, write_submission
from llm_qa.models.embedder import embed, load_embedder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    pytest.importorskip("sentence_transformers", reason="the optional sentence-transformers is not installed")
    texts = "".join(text for row in make_rows(tuned=True) for text in (*row["references"], row["prediction"]))
    return load_embedder(str(make_embedder(tmp_path_factory.mktemp("embedder"), texts)))


@pytest.mark.optional
def test_the_cosine_is_the_mean_over_the_references(embedder):
    rows = make_rows(tuned=True)[:4]
    rows[0]["prediction"] = rows[0]["references"][0]
    rows[0]["references"] = [rows[0]["references"][0]] * 2
    scored = with_cosines(rows, embedder)
    assert scored[0]["embedding_cosine"] == pytest.approx(1.0, abs=1e-5)
    answer, one, other = embed(embedder, [rows[1]["prediction"], *rows[1]["references"]])
    assert scored[1]["embedding_cosine"] == pytest.approx((answer @ one + answer @ other) / 2, abs=1e-5)


def test_without_an_embedder_rows_stay_as_they_are():
    rows = make_rows(tuned=True)
    assert with_cosines(rows, None) is rows


def test_the_submission_is_a_row_a_question(tmp_path):
    vectors = np.array([[0.1, -1.0, 1e-7], [0.0, 0.5, 0.33333334]], dtype=np.float32)
    write_submission(tmp_path / "submission.csv", ["TEST_000", "TEST,001"], vectors)
    with open(tmp_path / "submission.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "vec_0", "vec_1", "vec_2"]
    assert [row[0] for row in rows] == ["TEST_000", "TEST,001"]
    assert np.array_equal(np.array([row[1:] for row in rows], dtype=np.float32), vectors)
    assert "e" not in "".join(rows[0][1:])
