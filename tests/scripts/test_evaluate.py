"""evaluate.py through the real command line: killed and resumed, on two processes, with other settings, bad input."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from command_line import ROOT, environment, run_script

from llm_qa import files
from llm_qa.data.records import QARecord

DDP = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", "accelerate_configs/ddp.yaml"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, records):
    """Prepared data: the records to train on, 7 to test, one of which asks what is trained on but for a letter."""
    folder = tmp_path_factory.mktemp("data") / "small"
    words = ("줄눈 색", "몰딩 두께", "창호 단열", "페인트 냄새", "타일 간격", "문틀 처짐")
    asked = [(f"{word}, 왜 다른가요?", f"전문가에게 {word}부터 물어봅니다.") for word in words]
    test = [QARecord(f"X{i}", (q, f"{q[:5]} 설명 좀"), (a,), "시공") for i, (q, a) in enumerate(asked)]
    close = QARecord("X9", (records[0].questions[0] + "!",), ("다른 답이다.",), "시공")
    splits = {"train": records, "validation": [], "test": [*test, close]}
    for split, members in splits.items():
        files.write_jsonl(files.split_file(folder, split), [record.to_json() for record in members])
    sha256 = {f"{split}.jsonl": files.sha256_file(files.split_file(folder, split)) for split in splits}
    files.write_json(folder / files.MANIFEST, {"sha256": sha256})
    return folder


@pytest.fixture
def run(tmp_path, neox_folder, prepared):
    """A finished run of all weights: the base is the small GPT-NeoX, the tuned model the same, copied."""
    folder = tmp_path / "runs" / "full"
    shutil.copytree(neox_folder, folder / files.MODEL)
    recipe = {"model": str(neox_folder), "method": "full", "base_precision": "fp32"}
    files.write_text(folder / files.RECIPE, yaml.safe_dump(recipe))
    manifest = files.sha256_file(prepared / files.MANIFEST)
    files.write_json(folder / files.ENVIRONMENT, {"data": str(prepared), "data_sha256": manifest})
    return folder


def evaluate(run, *more, **variables):
    return run_script("scripts/evaluate.py", "--run", run, "--max-new-tokens", "12", *more, **variables)


def predictions(run, label="tuned"):
    return files.read_jsonl(files.evaluation_dir(run, "test", label) / files.PREDICTIONS)


def scores(run, label="tuned"):
    return files.read_json(files.evaluation_dir(run, "test", label) / files.SCORES)


def test_tuned_base_and_copied_answers(run):
    done = evaluate(run, "--base")
    assert done.returncode == 0, done.stderr
    assert len(predictions(run)) == len(predictions(run, "base")) == len(predictions(run, "nearest")) == 13
    assert [row["prediction"] for row in predictions(run)] == [row["prediction"] for row in predictions(run, "base")]
    assert scores(run)["contamination"]["close_questions"] == 1
    assert scores(run)["contamination"]["close_records"] == 1
    assert scores(run)["scores"]["groups"]["closeness"]["not close"]["records"] == 6
    assert scores(run, "nearest")["scores"]["metrics"]["bits_per_character"]["value"] is None
    assert not list(run.glob("eval/*/*.part"))

    before = {path: path.read_bytes() for path in run.glob("eval/*/*")}
    again = evaluate(run, "--base")
    assert again.stdout.count("answered before") == 2
    assert {path: path.read_bytes() for path in run.glob("eval/*/*")} == before


def test_two_processes_write_what_one_does(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "runs" / "two")
    os.utime(other / "model" / "model.safetensors", ns=(0, (run / "model" / "model.safetensors").stat().st_mtime_ns))
    assert evaluate(run, "--batch-size", "4").returncode == 0
    command = [
        sys.executable,
        *DDP,
        "scripts/evaluate.py",
        "--run",
        other,
        "--max-new-tokens",
        "12",
        "--batch-size",
        "4",
    ]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert scores(other)["processes"] == 2
    assert done.stdout.count("questions answered in") == 1, "one process talks"
    assert predictions(other) == predictions(run)
    assert scores(other)["scores"] == scores(run)["scores"]


def test_a_killed_evaluation_goes_on(run):
    command = [sys.executable, "scripts/evaluate.py", "--run", run, "--batch-size", "1", "--max-new-tokens", "200"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    part = files.evaluation_dir(run, "test") / "answers.0.part"
    deadline = time.monotonic() + 120
    while not (part.is_file() and part.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = run_script("scripts/report.py", run, "--out", run / "report")
    assert report.returncode == 2
    assert "did not finish" in report.stderr

    kept = part.read_bytes().count(b"\n")
    done = run_script("scripts/evaluate.py", "--run", run, "--batch-size", "1", "--max-new-tokens", "200")
    assert done.returncode == 0, done.stderr
    assert f"answering: going on after {kept} of 13" in done.stdout
    resumed = predictions(run)
    done = run_script(
        "scripts/evaluate.py", "--run", run, "--batch-size", "1", "--max-new-tokens", "200", "--overwrite"
    )
    assert predictions(run) == resumed


def test_the_originals_sampling_keeps_the_users_length(run):
    assert evaluate(run, "--sampling", "original", "--limit", "1").returncode == 0
    generation = scores(run)["generation"]
    assert (generation["max_new_tokens"], generation["temperature"], generation["top_k"]) == (12, 0.9, 1)
    assert evaluate(run, "--limit", "1").returncode == 0
    assert scores(run)["generation"]["do_sample"] is False, "other settings are answered anew"


def test_the_static_decoder_answers_the_same_and_is_named(run):
    assert evaluate(run).returncode == 0
    plain = predictions(run)
    done = evaluate(run, "--decoder", "static", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    assert "static decoding: 2 rows of " in done.stdout
    assert predictions(run) == plain
    assert scores(run)["generation"]["decoder"] == "static"


def test_the_static_decoder_is_refused_before_any_weight_is_read(run):
    shutil.rmtree(run / files.MODEL)
    done = evaluate(run, "--decoder", "static", "--sampling", "original")
    assert done.returncode == 2
    assert "--decoder static cannot answer here, because it is greedy" in done.stderr
    recipe = {"model": "skt/kogpt2-base-v2", "method": "full", "base_precision": "fp32"}
    files.write_text(run / files.RECIPE, yaml.safe_dump(recipe))
    asked = run / "questions.csv"
    files.write_text(asked, "id,질문\n1,왜 그런가요?\n")
    for script in (["scripts/evaluate.py"], ["scripts/ask.py", "--file", asked, "--out", run / "answers.csv"]):
        done = run_script(*script, "--run", run, "--decoder", "static")
        assert done.returncode == 2, done.stderr
        assert "because the model is a gpt2" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_of_questions_is_answered_the_same_by_either_decoder(run):
    asked = run / "questions.csv"
    files.write_text(asked, "id,질문\n" + "".join(f"{i},{'왜 ' * (i + 1)}그런가요?\n" for i in range(5)))
    answers = []
    for decoder in ("plain", "static"):
        out = run / f"{decoder}.csv"
        flags = ("--decoder", decoder, "--batch-size", "2", "--max-new-tokens", "9")
        done = run_script("scripts/ask.py", "--run", run, "--file", asked, "--out", out, *flags)
        assert done.returncode == 0, done.stderr
        answers.append(out.read_bytes())
    assert answers[0] == answers[1]
    done = run_script("scripts/ask.py", "--run", run, "--decoder", "static", "왜?")
    assert done.returncode == 2
    assert "--decoder static answers the questions of a --file" in done.stderr


def test_training_data_that_is_gone_is_said_and_not_guessed(run):
    environment_file = run / files.ENVIRONMENT
    data = files.read_json(environment_file)["data"]
    files.write_json(environment_file, {"data": "/nowhere", "data_sha256": "0" * 64})
    done = evaluate(run, "--data", data, "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "that is gone" in done.stdout
    assert scores(run)["contamination"] is None
    assert not files.evaluation_dir(run, "test", "nearest").exists()
    report = run_script("scripts/report.py", run, "--out", run / "report")
    assert report.returncode == 0, report.stderr
    assert "not checked" in (run / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0 and must be at least 1"),
        (["--limit", "-1"], "--limit is -1"),
        (["--seed", "-1"], "--seed is -1 and must be at least 0"),
        (["--split", "validation"], "has no records: prepare the data with --validation above 0"),
        (["--data", "nowhere"], "nowhere is not prepared data"),
        (["--max-new-tokens", "512"], "leaves no room for a question in the model's context of 512"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, message):
    done = evaluate(run, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
