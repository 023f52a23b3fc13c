"""scripts/report.py from the command line: the last screen, the exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
from evaluation.fixtures import make_run

ROOT = Path(__file__).parents[2]


def report(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, timeout=120)


def test_writes_the_report_and_ends_with_scores_and_path(tmp_path):
    make_run(tmp_path / "runs")
    done = report("runs/tiny", "--out", "reports/tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Character F1" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {Path('reports/tiny/report.html')}"
    assert (tmp_path / "reports" / "tiny" / "report.md").is_file()
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none", "--out", "x"], "does not exist"),
        (["runs/tiny", "--out", "x", "--split", "train"], "scripts/evaluate.py --run runs/tiny --base --split train"),
        (["runs/tiny", "--out", "x", "--samples", "-1"], "--samples: -1 is not a whole number of at least 0"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(tmp_path, arguments, message):
    make_run(tmp_path / "runs")
    done = report(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_torch_is_not_imported():
    """A report of finished runs needs no deep-learning library: it starts at once."""
    code = "import sys, llm_qa.evaluation.report.loading; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
