"""How near references are: by BM25 without a GPU, by sentence embeddings with stored vectors of the same embedder."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from llm_qa.data.documents import Passage
from llm_qa.data.records import QARecord
from llm_qa.data.reference_index import EmbeddingIndex
from llm_qa.data.references import References, Retrieval

LETTERS = "가나다라마바사아자차카타파하"
TEXTS = (("가가나", "하하"), ("다다라",), ("마마바", "사사", "차"))


def counted(texts):
    """An embedding by hand: how often each letter stands in a text, of length one."""
    counts = np.array([[text.count(letter) for letter in LETTERS] for text in texts], np.float32) + 1e-3
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_a_reference_is_as_near_as_its_nearest_text():
    scores = EmbeddingIndex(TEXTS, counted).scores("가하하")
    cosines = counted(["가하하"]) @ counted(["가가나", "하하", "다다라", "마마바", "사사", "차"]).T
    assert scores == pytest.approx([cosines[0, :2].max(), cosines[0, 2], cosines[0, 3:].max()], abs=1e-6)
    assert EmbeddingIndex(TEXTS, counted).scores("다다라") == pytest.approx(
        EmbeddingIndex(TEXTS, counted).scores("라다다"), abs=1e-6
    )


def test_stored_vectors_are_taken_as_they_are_and_another_embedder_s_are_not():
    asked = []

    def watched(texts):
        asked.append(list(texts))
        return counted(texts)

    made = EmbeddingIndex(TEXTS, watched)
    again = EmbeddingIndex(TEXTS, watched, made.vectors)
    assert asked == [["가가나", "하하", "다다라", "마마바", "사사", "차"], ["가가나"]]
    assert np.array_equal(again.scores("나나"), made.scores("나나"))
    with pytest.raises(ValueError, match="vectors are of another embedder"):
        EmbeddingIndex(TEXTS, lambda texts: counted(texts)[:, ::-1], made.vectors)
    with pytest.raises(ValueError, match="vectors are of another embedder"):
        EmbeddingIndex(TEXTS, lambda texts: counted(texts)[:, :5], made.vectors)
    with pytest.raises(ValueError, match=r"shape \(5, 14\)"):
        EmbeddingIndex(TEXTS, counted, made.vectors[1:])


def test_records_and_passages_are_found_by_embeddings_and_never_those_of_the_own_group():
    texts = (("가가나?", "하하"), ("가가다?", "카카"), ("마?", "하하"))
    records = [QARecord(str(i), (question,), (answer,)) for i, (question, answer) in enumerate(texts, 1)]
    passage = Passage("a.md#1", "a.md", "가가")
    references = References(records, Retrieval(2, 1.0, 1), [passage], partial(EmbeddingIndex, embed=counted))
    assert references.nearest("가가나?", 2) == [records[0], passage]
    assert references.nearest("가가나?", 3, beside=[records[0]]) == [passage, records[1]], "3 shares an answer with 1"


def test_bm25s_does_not_start_jax_on_a_gpu(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("import os\nprint('jax on', os.environ.get('JAX_PLATFORMS'))\n")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(values, k):\n    return values[:k], range(k)\n")
    code = (
        "from llm_qa.data.reference_index import MorphemeIndex; print(MorphemeIndex([['벽지']]).scores('벽지').shape)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"} | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["jax on cpu", "(1,)"], done.stderr
