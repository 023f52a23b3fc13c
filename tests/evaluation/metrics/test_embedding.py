"""Sentence embeddings on a small local model; the submission's form."""

import csv
import sys

import numpy as np
import pytest

from evaluation.embedders import make_embedder
from evaluation.fixtures import make_rows
from llm_qa.console import UserError
from llm_qa.evaluation.metrics.embedding import embed, load_embedder, with_cosines, write_submission


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    pytest.importorskip("sentence_transformers", reason="the optional sentence-transformers is not installed")
    texts = "".join(text for row in make_rows(tuned=True) for text in (*row["references"], row["prediction"]))
    return load_embedder(str(make_embedder(tmp_path_factory.mktemp("embedder"), texts)))


@pytest.mark.optional
def test_vectors_are_of_length_one_in_the_texts_order(embedder):
    texts = ["벽지 시공", "결로", "벽지 시공", ""]
    vectors = embed(embedder, texts)
    assert vectors.shape == (4, 512)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])


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


def test_a_missing_package_and_a_missing_model_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[submission\]'"):
        load_embedder("anything")


@pytest.mark.optional
def test_a_pickled_model_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the optional sentence-transformers is not installed")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        load_embedder(str(tmp_path))
    with pytest.raises(UserError, match="--embedder .* cannot be loaded"):
        load_embedder(str(tmp_path / "nowhere"))


def test_the_submission_is_a_row_a_question(tmp_path):
    vectors = np.array([[0.1, -1.0, 1e-7], [0.0, 0.5, 0.33333334]], dtype=np.float32)
    write_submission(tmp_path / "submission.csv", ["TEST_000", "TEST,001"], vectors)
    with open(tmp_path / "submission.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "vec_0", "vec_1", "vec_2"]
    assert [row[0] for row in rows] == ["TEST_000", "TEST,001"]
    assert np.array_equal(np.array([row[1:] for row in rows], dtype=np.float32), vectors)
    assert "e" not in "".join(rows[0][1:])
