"""Exit codes, one-line errors, tables with Hangul."""

import io
import subprocess
import sys
from functools import partial

import pytest

from llm_qa.console import (
    ArgumentParser,
    LineStream,
    UserError,
    counted,
    format_seconds,
    format_table,
    positive_int,
    whole_number,
)

SCRIPT = """
from llm_qa.console import StoppedEarly, UserError, run_script
def main():
    {body}
run_script(main)
"""


@pytest.fixture
def run(tmp_path):
    return partial(run_body, tmp_path / "script.py")


def run_body(path, body: str, **environment) -> subprocess.CompletedProcess:
    path.write_text(SCRIPT.format(body=body), encoding="utf-8")
    return subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={"PATH": "", **environment},
    )


@pytest.mark.parametrize(
    ("body", "code", "stdout", "stderr"),
    [
        ("print('벽지')", 0, "벽지\n", ""),
        ("raise UserError('값이 0 (--seed)')", 2, "", "error: 값이 0 (--seed)\n"),
        ("raise StoppedEarly('saved')", 75, "saved\n", ""),
        ("return 1", 1, "", ""),
        ("raise KeyboardInterrupt", 1, "", "error: stopped by Ctrl-C\n"),
    ],
)
def test_exit_codes_and_what_is_printed(run, body, code, stdout, stderr):
    done = run(body, LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)


def test_a_library_error_keeps_its_traceback(run):
    done = run("raise ValueError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_only_rank_zero_speaks(run):
    assert run("raise UserError('no')", RANK="1").stderr == ""


def test_tables_count_a_syllable_as_two_columns():
    lines = format_table(["분류", "n"], [["마감재", "10"], ["ab", "7"]]).splitlines()
    assert lines == ["분류     n", "------  --", "마감재  10", "ab       7"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3725, "1h02m")])
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rows", "0"], "--rows: 0 is not a whole number of at least 1 (--help lists the flags)."),
        (["--rows", "1.5"], "--rows: 1.5 is not a whole number of at least 1 (--help lists the flags)."),
        (["--seed", "-1"], "--seed: -1 is not a whole number of at least 0 (--help lists the flags)."),
        (["--other"], "unrecognized arguments: --other (--help lists the flags)."),
    ],
)
def test_a_mistake_in_a_flag_is_one_sentence(words, sentence):
    parser = ArgumentParser()
    parser.add_argument("--rows", type=positive_int)
    parser.add_argument("--seed", type=whole_number)
    with pytest.raises(UserError) as raised:
        parser.parse_args(words)
    assert str(raised.value) == sentence
    assert vars(parser.parse_args(["--rows", "1", "--seed", "0"])) == {"rows": 1, "seed": 0}


def test_one_of_a_kind_is_singular():
    assert [counted(number, "sequence") for number in (0, 1, 2, 2000)] == [
        "0 sequences",
        "1 sequence",
        "2 sequences",
        "2,000 sequences",
    ]


def test_in_a_log_a_bar_is_lines_with_the_time_left(run):
    body = """
    import time
    from llm_qa import console
    console.LOG_SECONDS = 0.2
    for _ in console.progress(range(5), what="answering", unit="questions"):
        time.sleep(0.4)
    print("after", file=sys.stderr)
"""
    done = run(f"import sys{body}")
    *states, last = done.stderr.splitlines()
    assert last == "after"
    assert 2 <= len(states) <= 5
    assert all(state.startswith("answering: ") and "\r" not in state for state in states)
    assert "5/5 [00:0" in states[-1]


def test_a_bar_of_a_library_is_no_line_where_it_is_short(run):
    done = run("import tqdm; list(tqdm.tqdm(range(9), desc='Loading weights'))")
    assert done.stderr == ""


def test_what_is_no_bar_is_written_as_it_is():
    written = io.StringIO()
    stream = LineStream(written)
    for text in ("a", "\n", "\n", "\r10%", "\r      ", "\r20%  ", "\n", "b\n", "\n"):
        stream.write(text)
    assert written.getvalue() == "a\n\n10%\n20%\nb\n\n"
    assert stream.isatty() is False


def test_a_step_of_make_does_not_say_which_command_is_next(run):
    body = "from llm_qa.console import say_next; say_next('next: x')"
    assert run(body).stdout == "next: x\n"
    assert run(body, LLM_QA_IS_STEP="1").stdout == ""


@pytest.mark.parametrize(("target", "steps"), [("eval", {"1"}), ("demo", {"1"}), ("ask", {""})])
def test_the_makefile_says_which_commands_it_follows_up(tmp_path, target, steps):
    for name in ("python", "accelerate"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text('#!/bin/sh\necho "step: $LLM_QA_IS_STEP"\n')
        command.chmod(0o755)
    (tmp_path / "installed").touch()
    done = subprocess.run(["make", "-s", target, f"VENV={tmp_path}"], capture_output=True, text=True, check=True)
    assert {line.removeprefix("step: ") for line in done.stdout.splitlines() if line.startswith("step:")} == steps
