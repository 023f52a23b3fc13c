"""prepare_data.py through the real command line."""

from command_line import run_script

from llm_qa import files


def test_the_bundled_data_by_default(tmp_path):
    done = run_script("scripts/prepare_data.py", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "texts in more than one split: 0 questions, 0 answers" in done.stdout
    assert "wide CSV" in done.stdout
    assert files.is_prepared(tmp_path / "out")


def test_flags_reach_the_manifest(tmp_path):
    source = tmp_path / "qa.csv"
    source.write_text("물음,대답\n" + "".join(f"{i}?,답 {i}\n" for i in range(20)), encoding="utf-8")
    flags = ["--question-column", "물음", "--answer-column", "대답", "--cleaning", "original", "--test", "0.2"]
    done = run_script("scripts/prepare_data.py", source, "--out", tmp_path / "out", *flags, "--seed", "3")
    assert done.returncode == 0, done.stderr
    manifest = files.read_json(tmp_path / "out" / "manifest.json")
    assert manifest["splits"]["test"]["records"] == 4
    assert (manifest["options"]["seed"], manifest["options"]["cleaning"]) == (3, "original")


def test_bad_input_is_one_line_and_code_2(tmp_path):
    done = run_script("scripts/prepare_data.py", tmp_path / "없는 파일.csv", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "없는 파일.csv does not exist." in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_impossible_output_folder_and_useless_flags_are_one_line_and_code_2(tmp_path):
    (tmp_path / "file").write_text("mine")
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"question": "왜?", "answer": "답"}\n', encoding="utf-8")
    for flags, sentence in [
        (["--out", tmp_path / "file" / "out"], "file is a file: name another folder."),
        (["--out", tmp_path / "out", "--stopwords-scope", "questions"], "has no effect without --stopwords."),
        (
            [lines, "--out", tmp_path / "out", "--answer-column", "A"],
            "--answer-column names a column or key that",
        ),
    ]:
        done = run_script("scripts/prepare_data.py", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert sentence in done.stderr
