"""Sentence embeddings by a small local model: vectors, what is refused, and which of several answers they choose."""

import sys

import numpy as np
import pytest
from evaluation.embedders import make_embedder

from llm_qa.console import UserError
from llm_qa.inference.candidates import closest_to_all
from llm_qa.models.embedder import RETRIEVAL, check_folder, embed, load_embedder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random sentence-transformers model on disk."""
    pytest.importorskip("sentence_transformers", reason="the optional sentence-transformers is not installed")
    return make_embedder(tmp_path_factory.mktemp("embedder"), "벽지를 시공 결로 붙입니다 붙이세요")


@pytest.mark.optional
def test_vectors_are_of_length_one_in_the_texts_order(folder):
    texts = ["벽지 시공", "결로", "벽지 시공", ""]
    vectors = embed(load_embedder(str(folder)), texts)
    assert vectors.shape == (4, 512)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])


@pytest.mark.optional
def test_the_kept_candidate_is_the_one_with_the_highest_mean_cosine(folder):
    texts = ["벽지를 붙입니다", "결로", "벽지를 붙이세요", "", "벽지 시공"]
    vectors = embed(load_embedder(str(folder)), texts)
    means = [sum(float(one @ other) for other in vectors) - 1 for one in vectors]
    means[3] = -9.0  # an empty answer only where all are empty
    assert closest_to_all(texts, str(folder)) == means.index(max(means))
    assert closest_to_all(["결로", "벽지 시공", "결로"], str(folder)) == 0


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


def test_a_run_s_embedder_is_a_local_folder(tmp_path):
    with pytest.raises(UserError, match="retrieval_embedder org/model is not a sentence-transformers model"):
        check_folder("org/model", RETRIEVAL)
    (tmp_path / "modules.json").write_text("[]")
    check_folder(tmp_path)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        check_folder(tmp_path)
