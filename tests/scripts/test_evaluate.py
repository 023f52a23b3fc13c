"""evaluate.py through the real command line: killed and resumed, on two processes, with other settings, bad input."""

import csv
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
    assert again.stdout.count("the answers of an earlier evaluation are scored again") == 2
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
    shown = []
    for decoder in ("plain", "static"):  # a single question is printed as it is answered
        done = run_script("scripts/ask.py", "--run", run, "--decoder", decoder, "--max-new-tokens", "9", "왜?")
        assert done.returncode == 0, done.stderr
        shown.append([line for line in done.stdout.splitlines() if not line.startswith("static decoding")])
    assert shown[0] == shown[1]


def test_trained_on_questions_stand_in_the_first_line_and_other_data_beside_the_runs_own(run, tmp_path, records):
    assert evaluate(run, "--limit", "2").returncode == 0
    own = predictions(run)
    other = tmp_path / "other"
    asked = [
        *records[:5],
        *(QARecord(f"N{i}", (f"{i}번째 새 질문인가요?",), (f"{i}번째 새 답입니다.",)) for i in range(4)),
    ]
    asked = [QARecord(one.id, one.questions[:1], one.answers, one.category) for one in asked]
    for split, members in {"train": [], "validation": [], "test": asked}.items():
        files.write_jsonl(files.split_file(other, split), [record.to_json() for record in members])
    sha256 = {f"{split}.jsonl": files.sha256_file(files.split_file(other, split)) for split in files.SPLITS}
    files.write_json(other / files.MANIFEST, {"sha256": sha256})
    done = evaluate(run, "--data", other)
    assert done.returncode == 0, done.stderr
    assert "warning: 5 of 9 test questions are in the training data" in done.stdout
    place = f"other-{files.sha256_file(other / files.MANIFEST)[:8]}"
    assert f"its evaluation goes to {run / 'eval' / place / 'test'}" in done.stdout
    assert len(files.read_jsonl(files.evaluation_dir(run, "test", data=place) / files.PREDICTIONS)) == 9
    assert predictions(run) == own, "the run's own evaluation is not touched"
    command = done.stdout.splitlines()[-1].removeprefix("next: .venv/bin/python ").split()
    assert command[-2:] == ["--data", str(other)]
    assert command[-5] == f"reports/{run.name}-other", "not the page on the run's own data"
    report = run_script(*command[:-5], run / "report", *command[-4:])
    assert report.returncode == 0, report.stderr
    first = "5 of 9 test questions are in the training data."
    assert report.stdout.startswith(first)
    page = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert page.startswith(f"# Evaluation: {run.name} on other data: ")
    assert "not usable yet: 5 of the 9 questions are in its training data, " in page.splitlines()[2]
    assert f"\n{first} " in page
    assert f'<p class="headline">{first}' in (run / "report" / "report.html").read_text(encoding="utf-8")


def test_answers_of_other_settings_are_not_replaced_without_a_word(run):
    assert "replaced" not in evaluate(run, "--limit", "1").stdout
    done = run_script("scripts/evaluate.py", "--run", run, "--limit", "1", "--max-new-tokens", "9")
    assert "are of other settings (max_new_tokens 12 -> 9) and are replaced when these are complete" in done.stdout
    assert scores(run)["generation"]["max_new_tokens"] == 9
    files.write_json(run / files.MODEL / "generation_config.json", {"temperature": 0.5})
    done = run_script("scripts/evaluate.py", "--run", run, "--limit", "1", "--max-new-tokens", "9")
    assert "(other questions, weights or code)" in done.stdout


def test_every_question_knows_its_group_and_cut_answers_are_counted(run):
    files.write_json(run / files.TRAINING, {files.ANSWER_TOKENS: 7})
    done = run_script("scripts/evaluate.py", "--run", run, "--limit", "3")
    assert "--max-new-tokens 128: 99% of the training answers" in done.stdout
    assert scores(run)["generation"]["max_new_tokens"] == 128
    assert evaluate(run).returncode == 0
    rows = predictions(run)
    assert [row["group"] for row in rows] == [row["id"] for row in rows], "no two of these records share a text"
    cut = sum(not row["stopped"] for row in rows)
    assert scores(run)["scores"]["answers_cut"] == cut > 0
    report = run_script("scripts/report.py", run, "--out", run / "report")
    assert report.returncode == 0, report.stderr
    assert f"{cut} of its 13 answers" in (run / "report" / "report.md").read_text(encoding="utf-8")


def interrupted(*command, until):
    """What a command says that gets Ctrl-C once `until()`; with its exit code."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # Tests that a shell runs in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 120
        while not until():
            assert time.monotonic() < deadline
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(run):
    command = ["scripts/evaluate.py", "--run", run, "--batch-size", "1", "--max-new-tokens", "200"]
    part = files.evaluation_dir(run, "test") / "answers.0.part"
    code, out, err = interrupted(*command, until=lambda: part.is_file() and part.read_bytes().count(b"\n") >= 2)
    assert code == 75
    assert out.splitlines()[-1] == (
        f"stopped: every batch of answers so far is kept in {run / 'eval'}, and the same command goes on"
    )
    assert "Traceback" not in err
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert "answering: going on after" in done.stdout


def test_ctrl_c_keeps_the_answers_to_a_file_of_questions(run):
    asked, out = run / "questions.csv", run / "answers.csv"
    files.write_text(asked, "번호,물음\n" + "".join(f"{i},{i}번은 왜 그런가요?\n" for i in range(1, 40, 2)))
    command = ["scripts/ask.py", "--run", run, "--file", asked, "--out", out, "--batch-size", "1"]
    command += ["--max-new-tokens", "200", "--question-column", "물음"]
    part = run / ".answers.csv.0.part"
    code, told, err = interrupted(*command, until=lambda: part.is_file() and part.read_bytes().count(b"\n") >= 2)
    assert code == 75
    assert f"kept in {part}, and the same command goes on" in told.splitlines()[-1]
    assert "Traceback" not in err
    assert not out.exists()
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert "answering: going on after" in done.stdout
    assert not part.exists()
    with out.open(encoding="utf-8-sig", newline="") as opened:  # an answer may have line breaks
        written = list(csv.reader(opened))
    assert [row[0] for row in written[1:]] == [str(i) for i in range(1, 40, 2)]
    assert "of 20 answers were cut after 200 tokens (--max-new-tokens)" in done.stdout


def test_a_question_longer_than_the_model_is_refused_before_any_weight_is_read(run):
    (run / files.MODEL / "model.safetensors").unlink()
    long = "왜 " * 900 + "그런가요?"
    asked = run / "questions.csv"
    files.write_text(asked, f"id,질문\n1,짧은가요?\n2,{long}\n")
    for more in ([long], ["--file", asked, "--out", run / "answers.csv"]):
        done = run_script("scripts/ask.py", "--run", run, *more)
        assert done.returncode == 2, done.stderr
        assert "and the model's context of 512 leaves 384 beside --max-new-tokens 128" in done.stderr
        assert "Traceback" not in done.stderr
    done = run_script("scripts/ask.py", "--run", run, "--file", asked, "--out", run / "answers.xlsx")
    assert (done.returncode, "give it a name that ends in .csv" in done.stderr) == (2, True)
    done = run_script("scripts/ask.py", "--run", run, "--question-column", "Q", "왜?")
    assert (done.returncode, "names a column of a --file" in done.stderr) == (2, True)


def test_a_passage_longer_than_the_model_is_shortened_and_said(run):
    done = run_script("scripts/ask.py", "--run", run, "왜?", "--context", "맥락 " * 900, "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    told = "1 of 1 questions do not fit into the model's context of 512 tokens with what stands before them"
    assert done.stdout.count(told) == 1


def test_training_data_that_is_gone_is_said_and_not_guessed(run):
    environment_file = run / files.ENVIRONMENT
    data = files.read_json(environment_file)["data"]
    files.write_json(environment_file, {"data": "/nowhere", "data_sha256": "0" * 64})
    done = evaluate(run, "--data", data, "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "which is missing" in done.stdout
    place = next(path.name for path in (run / "eval").iterdir())
    found = files.read_json(files.evaluation_dir(run, "test", data=place) / files.SCORES)
    assert found["contamination"] is None
    assert not files.evaluation_dir(run, "test", "nearest", place).exists()
    report = run_script("scripts/report.py", run, "--out", run / "report")
    assert report.returncode == 2
    assert f"it was evaluated on other data, {place}: name that with --data" in report.stderr
    report = run_script("scripts/report.py", run, "--out", run / "report", "--data", data)
    assert report.returncode == 0, report.stderr
    assert "not checked" in (run / "report" / "report.md").read_text(encoding="utf-8")
    (files.evaluation_dir(run, "test", data=place) / files.SCORES).unlink()
    report = run_script("scripts/report.py", run, "--out", run / "report", "--data", data)
    assert (
        f"did not finish: run `.venv/bin/python scripts/evaluate.py --run {run} --base --data {data} --split test`"
        in report.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size: 0 is not a whole number of at least 1"),
        (["--limit", "-1"], "--limit: -1 is not a whole number of at least 1"),
        (["--seed", "-1"], "--seed: -1 is not a whole number of at least 0"),
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
