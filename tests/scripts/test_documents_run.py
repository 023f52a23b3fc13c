"""A user's own passages through the real command line: prepared, trained with, asked, exported."""

import pytest
from command_line import run_script

from llm_qa import files
from llm_qa.evaluation.predict.asking import find_source
from llm_qa.inference.settings import GenerationSettings

GUIDE = "# 결로\n\n## 겨울철 단열재\n\n겨울철 단열재는 외벽 안쪽에 이어 붙입니다.\n\n틈이 있으면 결로가 생깁니다.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a Markdown file and a text file in CP949."""
    folder = tmp_path_factory.mktemp("field") / "my-field"
    (folder / "old").mkdir(parents=True)
    (folder / "guide.md").write_text(GUIDE, encoding="utf-8")
    (folder / "old" / "memo.txt").write_bytes("욕실 타일의 줄눈은 일 년에 한 번 메웁니다.".encode("cp949"))
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def with_documents(tmp_path_factory, prepared, folder):
    """Prepared data with the folder's passages, and what was printed."""
    raw = tmp_path_factory.mktemp("raw") / "train.jsonl"
    raw.write_bytes(b"".join(files.split_file(prepared, split).read_bytes() for split in files.SPLITS))
    out = raw.parent / "data"
    done = run_script("scripts/prepare_data.py", raw, "--out", out, "--test", "0.3", "--documents", folder)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_with, with_documents):
    """A finished run."""
    run = tmp_path_factory.mktemp("runs") / "with-documents"
    done = train_with(with_documents[0], max_steps=2, retrieval=2)(run)
    assert done.returncode == 0, done.stderr
    return run


def test_prepared_data_holds_the_passages_and_their_files(with_documents, folder):
    out, screen = with_documents
    assert "documents: 2 files, 2 passages of up to 400 characters" in screen
    manifest = files.read_json(out / files.MANIFEST)
    assert manifest["sha256"][files.DOCUMENTS] == files.sha256_file(out / files.DOCUMENTS)
    assert manifest["options"]["documents"] == "my-field"
    accounts = {account["file"]: account for account in manifest["documents"]}
    assert accounts["guide.md"]["sha256"] == files.sha256_file(folder / "guide.md")
    assert accounts["old/memo.txt"]["encoding"] == "cp949"
    first, second = files.read_jsonl(out / files.DOCUMENTS)
    assert first["text"].startswith("결로 > 겨울철 단열재\n겨울철")
    assert second == {"id": "old/memo.txt#1", "source": "old/memo.txt", "text": second["text"]}


def test_a_question_is_put_after_the_passage_and_its_file_is_named(trained, with_documents, tmp_path):
    kept = files.read_jsonl(trained / files.REFERENCES)
    training, passages = (files.read_jsonl(with_documents[0] / name) for name in ("train.jsonl", files.DOCUMENTS))
    assert kept == [*training, *passages], "validation and test records stay outside"
    question = "겨울철 단열재는 어디에 붙이나요?"
    ((_, context),) = find_source(run=trained).fit([(question, "")], GenerationSettings(max_new_tokens=4))
    assert context.endswith("틈이 있으면 결로가 생깁니다.")
    assert "참고 자료 (guide.md): 결로 > 겨울철 단열재" in context
    asked = run_script("scripts/ask.py", "--run", trained, "--max-new-tokens", "4", question)
    assert asked.returncode == 0, asked.stderr
    assert "(references: guide.md, " in asked.stdout
    done = run_script("scripts/export.py", "--run", trained, "--out", tmp_path / "exported", "--no-evaluate")
    assert done.returncode == 0, done.stderr
    assert files.read_jsonl(tmp_path / "exported" / files.REFERENCES) == kept
    assert "`참고 자료 (<source>): <text>`" in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")


def test_a_run_without_retrieval_says_that_it_reads_no_documents(train_with, with_documents, folder, tmp_path):
    done = train_with(with_documents[0], max_steps=1)(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "note: 2 passages of documents in" in done.stdout
    done = train_with(max_steps=1)(tmp_path / "other", "--documents", folder)
    assert done.returncode == 2
    assert "would not be read, as retrieval is 0: set --retrieval" in done.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "does not exist: name a folder of text or Markdown files"),
        ("folder/a.txt", "is a file: name a folder"),
        ("empty", "has no text or Markdown file"),
        ("titles", "holds headings and no text under them"),
        ("pdf", "is a PDF, not text: save it as plain text in UTF-8"),
        ("control", "cannot be used (control character or broken text (U+0001))"),
    ],
)
def test_documents_that_cannot_be_used_are_refused(name, sentence, prepared, tmp_path):
    contents = {"folder/a.txt": b"text", "empty/a.csv": b"a,b", "titles/a.md": b"# one\n## two\n"}
    contents |= {"pdf/a.txt": b"%PDF-1.7 x", "control/a.txt": b"a\x01b"}
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    raw = files.split_file(prepared, "train")
    done = run_script("scripts/prepare_data.py", raw, "--out", tmp_path / "out", "--documents", tmp_path / name)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()
