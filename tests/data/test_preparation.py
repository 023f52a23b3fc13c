"""Prepared data: complete, deterministic, raw where it is scored, never overwritten by surprise."""

import csv
import json
from pathlib import Path

import pytest

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.preparation import bundled_file, prepare, prepared_folder
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.splits import load_split
from llm_qa.data.text import normalize

SHARED_CHATBOT = Path(__file__).parents[2].parent / "shared" / "data" / "chatbot_qa.csv"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "raw.csv"
    rows = "".join(f"{i}번 질문은 왜 그런가요?,{i}.5m라서 걸리지 않습니다.\n" for i in range(40))
    path.write_text(f"질문,답변\n{rows},빈 질문\n", encoding="utf-8")
    return path


def test_the_manifest_accounts_for_every_row_and_file(source, tmp_path):
    out = tmp_path / "out"
    manifest = prepare([source], out, PreparationOptions())
    assert manifest == files.read_json(out / "manifest.json")
    assert (manifest["rows_read"], manifest["kept"], manifest["rejected"]) == (41, 40, 1)
    assert manifest["rejected_by_reason"] == {"empty question": 1}
    assert manifest["texts_in_several_splits"] == {"questions": 0, "answers": 0}
    assert manifest["inputs"][0]["sha256"] == files.sha256_file(source)
    assert {path.name for path in out.iterdir()} == {*manifest["sha256"], "manifest.json"}
    assert sum(item["records"] for item in manifest["splits"].values()) == 40
    assert str(tmp_path) not in json.dumps(manifest, ensure_ascii=False)


def test_the_same_input_gives_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        prepare([source], tmp_path / name, PreparationOptions())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_cleaning_touches_what_is_trained_on_and_never_the_test_split(source, tmp_path):
    prepare([source], tmp_path / "raw", PreparationOptions())
    prepare([source], tmp_path / "clean", PreparationOptions(cleaning="original"))
    assert load_split(tmp_path / "raw", "test") == load_split(tmp_path / "clean", "test")
    for split in ("train", "validation"):
        raw, clean = load_split(tmp_path / "raw", split), load_split(tmp_path / "clean", split)
        assert [record.id for record in raw] == [record.id for record in clean]
        assert all("5m" in record.answers[0] and "." not in record.answers[0] for record in clean)


def test_a_record_that_cleaning_empties_is_rejected_and_still_counted(source, tmp_path):
    with open(source, "a", encoding="utf-8") as file:
        file.writelines(f"{'?' * i},{'!' * i}\n" for i in range(2, 30))
    manifest = prepare([source], tmp_path / "out", PreparationOptions(cleaning="original"))
    assert manifest["rejected_by_reason"]["nothing left after cleaning"] > 10
    assert manifest["rows_read"] == manifest["kept"] + manifest["rejected"] == 69
    emptied = [row for row in files.read_jsonl(tmp_path / "out" / "rejected.jsonl") if "cleaning" in row["reason"]]
    lines = source.read_text(encoding="utf-8").splitlines()
    assert all(row["file"] == "raw.csv" and lines[row["line"] - 1].startswith(row["text"]) for row in emptied)
    assert manifest["inputs"][0]["kept"] == manifest["kept"]
    assert manifest["inputs"][0]["rejected"] == manifest["rejected"] == 1 + len(emptied)


def test_texts_that_cleaning_makes_equal_across_splits_are_counted(tmp_path):
    stopwords = tmp_path / "stop.txt"
    stopwords.write_text("\n".join(f"낱말{i}" for i in range(40)), encoding="utf-8")
    source = tmp_path / "raw.csv"
    rows = "".join(f"낱말{i} 벽지는 왜 들뜨나요?,답 {i}입니다.\n" for i in range(40))
    source.write_text(f"질문,답변\n{rows}", encoding="utf-8")
    assert prepare([source], tmp_path / "a", PreparationOptions())["texts_in_several_splits"]["questions"] == 0
    cleaned = prepare([source], tmp_path / "b", PreparationOptions(stopwords=str(stopwords)))
    assert cleaned["texts_in_several_splits"] == {"questions": 1, "answers": 0}


def test_a_scope_without_stopwords_is_said(source, tmp_path):
    with pytest.raises(UserError, match="--stopwords-scope all has no effect without --stopwords"):
        prepare([source], tmp_path / "out", PreparationOptions(stopwords_scope="all"))


def test_an_output_folder_that_cannot_be_made_is_one_sentence(source, tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for out, sentence in [
        (in_the_way, "exists and is not prepared data"),
        (in_the_way / "deeper" / "out", f"{in_the_way} is a file"),
        (loop, "cannot be used"),
        (tmp_path / ("n" * 300), "cannot be used"),
        ("/proc/out", "--out /proc/out cannot be"),
    ]:
        with pytest.raises(UserError, match=sentence) as error:
            prepare([source], out, PreparationOptions())
        assert "\n" not in str(error.value)
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may write everywhere
    with pytest.raises(UserError, match="may not be written to"):
        prepare([source], tmp_path / "out", PreparationOptions())
    assert in_the_way.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "raw.csv"]


def test_the_empty_folder_that_one_stands_in_can_be_the_output(source, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    prepare([source], ".", PreparationOptions())
    assert files.is_prepared(here)


def test_existing_folders_are_never_overwritten_by_surprise(source, tmp_path, capsys):
    out = tmp_path / "out"
    prepare([source], out, PreparationOptions())
    before = (out / "train.jsonl").stat().st_mtime_ns
    prepare([source], out, PreparationOptions())
    assert "already holds exactly this data" in capsys.readouterr().out
    assert (out / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="--overwrite"):
        prepare([source], out, PreparationOptions(seed=1))
    prepare([source], out, PreparationOptions(seed=1), overwrite=True)
    assert files.read_json(out / "manifest.json")["options"]["seed"] == 1
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not prepared data"):
        prepare([source], foreign, PreparationOptions(), overwrite=True)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half-made is left"


def test_bad_numbers_are_named_together(source, tmp_path):
    with pytest.raises(UserError, match=r"--validation is 1.5 .*; .*--max-characters is 0"):
        prepare([source], tmp_path / "out", PreparationOptions(validation=1.5, max_characters=0))


def test_raw_files_named_to_training_are_prepared_once(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLM_QA_DATA", str(tmp_path / "data"))
    folder = prepared_folder([str(source)])
    assert folder.parent == tmp_path / "data"
    assert folder.name.startswith("raw-")
    assert prepared_folder([str(source)]) == folder
    assert prepared_folder([str(folder)]) == folder
    source.write_text(source.read_text(encoding="utf-8") + "하나 더?,네.\n", encoding="utf-8")
    assert prepared_folder([str(source)]) != folder, "an edited file is other data"
    assert "already holds" in capsys.readouterr().out


def test_data_that_is_prepared_already_is_one_folder_without_flags(source, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_QA_DATA", str(tmp_path / "data"))
    one, two = str(prepared_folder([str(source)])), str(prepared_folder(None))
    for paths in ([one, two], [str(source), two]):
        with pytest.raises(
            UserError, match="--data takes one prepared folder, or raw files, and .* is a folder among 2"
        ):
            prepared_folder(paths)
    with pytest.raises(UserError, match="is prepared already, so the flags for preparing have no effect"):
        prepared_folder([one], PreparationOptions(line_breaks="join"))


def test_other_options_are_another_folder_and_a_damaged_one_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLM_QA_DATA", str(tmp_path / "data"))
    source = tmp_path / "raw.csv"
    rows = "".join(f'{i}번은 왜 그런가요?,"{i}) 하나\n둘"\n' for i in range(40))
    source.write_text(f"질문,답변\n{rows}가?,\n", encoding="utf-8")
    kept = prepared_folder([str(source)])
    said = capsys.readouterr().out
    assert "rejected: 1 no answer" in said
    assert f"prepared data: {kept}" in said
    joined = prepared_folder([str(source)], PreparationOptions(line_breaks="join"))
    assert joined != kept
    assert {"\n" in record.answers[0] for record in load_split(kept, "train")} == {True}
    assert {"\n" in record.answers[0] for record in load_split(joined, "train")} == {False}
    files.split_file(kept, "test").write_text("", encoding="utf-8")
    assert prepared_folder([str(source)]) == kept
    assert load_split(kept, "test")
    capsys.readouterr()
    monkeypatch.setattr(Path, "mkdir", None)  # nothing is written where the same data lies there already
    assert prepared_folder([str(source)]) == kept
    assert "rejected: 1 no answer" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_names_what_decides_it(source, monkeypatch):
    monkeypatch.setenv("LLM_QA_DATA", "/proc/data")
    with pytest.raises(UserError, match="LLM_QA_DATA /proc/data/raw-[0-9a-f]+ cannot be"):
        prepared_folder([str(source)])


def test_the_bundled_data_has_the_original_layout_and_is_sound(tmp_path):
    manifest = prepare([bundled_file("train.csv")], tmp_path / "out", PreparationOptions())
    assert manifest["rejected"] == 0
    assert manifest["kept"] >= 60
    categories = set()
    for split in files.SPLITS:
        for record in load_split(tmp_path / "out", split):
            categories.add(record.category)
            assert (len(record.questions), len(record.answers)) == (2, 5), record.id
            assert len({len(answer) for answer in record.answers}) > 1, f"{record.id}: answers all of one length"
            assert all(text == normalize(text) for text in (*record.questions, *record.answers))
    assert categories == {"마감재", "인테리어", "시공", "마감하자", "건축구조", "기타", "타 마감하자"}


def test_the_bundled_questions_are_not_in_the_bundled_records():
    with open(bundled_file("test.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "질문"]
    assert len(rows) >= 20
    with open(bundled_file("train.csv"), encoding="utf-8", newline="") as file:
        known = {row[key] for row in csv.DictReader(file) for key in ("질문_1", "질문_2")}
    assert not known & {row["질문"] for row in rows}


@pytest.mark.skipif(not SHARED_CHATBOT.exists(), reason="no ../shared/data/chatbot_qa.csv beside the project")
def test_a_strangers_file_is_read_whole_in_either_encoding(tmp_path):
    manifest = prepare([SHARED_CHATBOT], tmp_path / "utf8", PreparationOptions())
    assert (manifest["rows_read"], manifest["kept"], manifest["rejected"]) == (11823, 11750, 73)
    assert manifest["texts_in_several_splits"] == {"questions": 0, "answers": 0}
    copy = tmp_path / SHARED_CHATBOT.name
    copy.write_bytes(SHARED_CHATBOT.read_text(encoding="utf-8").encode("cp949"))
    prepare([copy], tmp_path / "cp949", PreparationOptions())
    assert load_split(tmp_path / "utf8", "train") == load_split(tmp_path / "cp949", "train")


def test_two_that_prepare_the_same_data_at_once_both_have_it(tmp_path, monkeypatch):
    """The other is faster just after this one saw that nothing is there."""
    raw, out = tmp_path / "raw.csv", tmp_path / "out"
    raw.write_text("질문,답변\n" + "".join(f"{i}?,{i}\n" for i in range(20)), encoding="utf-8")
    real, asked = files.is_prepared, []

    def is_prepared(path):
        asked.append(path)
        if len(asked) == 1:
            with monkeypatch.context() as patched:
                patched.setattr(files, "is_prepared", real)
                prepare([raw], out, PreparationOptions())
            return False
        return real(path)

    monkeypatch.setattr(files, "is_prepared", is_prepared)
    manifest = prepare([raw], out, PreparationOptions())
    assert manifest == files.read_json(out / files.MANIFEST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw.csv"]
