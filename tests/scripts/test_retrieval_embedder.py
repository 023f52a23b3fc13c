"""retrieval_embedder through the command line: trained, asked with the kept vectors, refused where it is missing."""

import shutil

import numpy as np
import pytest
from command_line import run_script
from evaluation.embedders import make_embedder

from llm_qa import files
from llm_qa.data.references import texts_of
from llm_qa.evaluation.predict.asking import find_source
from llm_qa.models.embedder import embed, load_embedder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory, records):
    """A random sentence-transformers model on disk."""
    pytest.importorskip("sentence_transformers", reason="the optional sentence-transformers is not installed")
    letters = "".join(text for record in records for text in (*record.questions, *record.answers))
    return make_embedder(tmp_path_factory.mktemp("embedder"), letters, 16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_with, embedder):
    """A finished run with references by embeddings, of joined questions too."""
    run = tmp_path_factory.mktemp("runs") / "by-embeddings"
    done = train_with(max_steps=4, retrieval=2, join_questions=0.3, retrieval_embedder=str(embedder))(run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.optional
def test_a_run_keeps_the_vectors_and_is_asked_with_the_nearest_by_cosine(trained, embedder):
    references = find_source(run=trained).references
    kept = np.load(trained / files.REFERENCE_VECTORS, allow_pickle=False)
    texts = [text for reference in references.all for text in texts_of(reference)]
    model = load_embedder(str(embedder))
    assert kept == pytest.approx(embed(model, texts), abs=1e-5)
    question = "마루는 언제 까나요?"
    nearest = texts[int((kept @ embed(model, [question])[0]).argmax())]
    assert nearest in texts_of(references.nearest(question, 1)[0])
    asked = run_script("scripts/ask.py", "--run", trained, "--max-new-tokens", "4", question)
    assert asked.returncode == 0, asked.stderr
    assert f"training record {references.nearest(question, 1)[0].id}" in asked.stdout
    done = run_script(
        "scripts/evaluate.py", "--run", trained, "--max-new-tokens", "4", "--candidates", "2", "--embedder", embedder
    )
    assert done.returncode == 0, done.stderr
    assert f"the one closest to the others is kept, by the cosine of {embedder}" in done.stdout
    scores = files.read_json(files.evaluation_dir(trained, "test") / files.SCORES)
    assert scores["generation"]["embedder"] == str(embedder)


@pytest.mark.optional
def test_an_exported_model_takes_the_vectors_along_and_names_the_embedder(trained, embedder, tmp_path):
    done = run_script("scripts/export.py", "--run", trained, "--out", tmp_path / "exported", "--no-evaluate")
    assert done.returncode == 0, done.stderr
    name = files.REFERENCE_VECTORS
    assert (tmp_path / "exported" / name).read_bytes() == (trained / name).read_bytes()
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert f"by the cosine of sentence embeddings of {embedder.name}, of which `{name}` holds" in card


@pytest.mark.optional
def test_a_run_is_not_asked_by_another_embedder_nor_with_damaged_vectors(trained, embedder, records, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    path = run / files.REFERENCE_VECTORS
    vectors = np.load(path)
    for content, told in ((vectors[1:], "not one float32 vector of each text"), (-vectors, "of another embedder")):
        np.save(path, content)
        done = run_script("scripts/ask.py", "--run", run, "왜?")
        assert done.returncode == 2
        assert told in done.stderr
    path.write_bytes(b"")
    done = run_script("scripts/ask.py", "--run", run, "왜?")
    assert done.returncode == 2
    assert "references.npy is damaged" in done.stderr
    path.unlink()
    done = run_script("scripts/ask.py", "--run", run, "왜?")
    assert done.returncode == 2
    assert "references.npy is missing: the run was trained with retrieval 2" in done.stderr
    moved = (run / files.RECIPE).read_text(encoding="utf-8").replace(str(embedder), str(tmp_path / "nowhere"))
    (run / files.RECIPE).write_text(moved, encoding="utf-8")
    np.save(path, vectors)
    done = run_script("scripts/ask.py", "--run", run, "왜?")
    assert done.returncode == 2
    assert f"retrieval_embedder {tmp_path / 'nowhere'} is not a sentence-transformers model" in done.stderr


def test_what_cannot_find_references_is_refused_before_the_data_is_read(train_with, tmp_path):
    from llm_qa.models import embedder as module

    done = train_with(max_steps=4)(tmp_path / "run", "--retrieval-embedder", str(tmp_path))
    assert done.returncode == 2
    assert "retrieval_embedder would be ignored with retrieval 0" in done.stderr
    done = train_with(max_steps=4, retrieval=2)(tmp_path / "run", "--retrieval-embedder", str(tmp_path))
    assert done.returncode == 2
    installed = module.importlib.util.find_spec("sentence_transformers") is not None
    told = "is not a sentence-transformers model" if installed else "pip install -e '.[submission]'"
    assert told in done.stderr
    assert not (tmp_path / "run").exists()
