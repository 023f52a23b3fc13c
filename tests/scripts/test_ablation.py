"""ablation.py: every variant trained, all in one report on the same raw test, and going on after a stop."""

import json
import subprocess
import sys

import pytest
from command_line import ROOT, environment, run_script

from llm_qa import files
from llm_qa.data.preparation import bundled_file


@pytest.fixture
def workplace(tmp_path):
    """A folder to run in, a recipe of one step, a stopword file."""
    recipe = "model: embedded\nlora_r: 2\nmax_length: 128\npack_length: 128\nmax_steps: 1\nlearning_rate: 1.0e-3\n"
    files.write_text(tmp_path / "one_step.yaml", recipe)
    files.write_text(tmp_path / "stopwords.txt", "그리고\n때문에\n")
    return tmp_path


def test_bad_input_is_refused_before_anything_is_prepared(workplace):
    for arguments, message in (
        (["--name", "a/b"], "--name a/b is a path"),
        (["--name", "a", "--stopwords", "none.txt"], "--stopwords none.txt does not exist"),
        (["none.csv", "--name", workplace.name], "none.csv"),
        (["--name", "a", "--max-steps", "1", "--lora-rank", "2"], "yaml: lora_rank is not a known key"),
    ):
        done = run_script("scripts/ablation.py", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_eight_models_on_one_test(workplace):
    command = [sys.executable, ROOT / "scripts" / "ablation.py", bundled_file("train.csv"), "--name", "all"]
    command += ["--recipe", "one_step.yaml", "--stopwords", "stopwords.txt", "--test", "0.1"]
    command = [str(word) for word in command]
    more = {"env": environment(LLM_QA_CACHE=str(workplace / "cache")), "cwd": workplace, "capture_output": True}
    done = subprocess.run(command, text=True, encoding="utf-8", timeout=1800, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 of 8 variants in " in done.stdout
    assert "next: " not in done.stdout
    tests = {path.read_bytes() for path in workplace.glob("data/all-*/test.jsonl")}
    assert len(tests) == 1, "the test split stays raw, whatever the cleaning"
    assert len(list(workplace.glob("runs/all-*/eval/test/scores.json"))) == 8
    losses = {
        json.loads(path.read_text(encoding="utf-8").splitlines()[0])["loss"]
        for path in workplace.glob("runs/all-*/log.jsonl")
    }
    assert len(losses) == 8, "eight different trainings"
    assert "| 8 | " in (workplace / "reports" / "all" / "report.md").read_text(encoding="utf-8")
    answers = [files.read_jsonl(path) for path in workplace.glob("runs/all-*/eval/test-base/predictions.jsonl")]
    assert len(answers) == 8
    assert len({str([(row["prediction"], row["reference_bits"]) for row in rows]) for rows in answers}) == 1, "one base"
    table = (workplace / "reports" / "all" / "ablation.txt").read_text(encoding="utf-8")
    assert table in done.stdout
    assert table.count("loss on everything") == 4 + 4, "scores, and differences from the first"
    assert table.count("  loss on answer ") == 4 + 3
