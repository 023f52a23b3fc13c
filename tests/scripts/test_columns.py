"""What the commands print at a terminal of 80 columns fits it in both languages, where a Hangul syllable takes two."""

import re
import unicodedata

import pytest
from command_line import ROOT, run_script, terminal_lines

COLUMNS = 80
LANGUAGES = ("en", "ko")
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
# What is copied stays on one line.
COMMAND = re.compile(r"\s*(next: |다음: )?(make|python|accelerate|\.venv/bin/\w+|ollama) ")


def width(line: str) -> int:
    """Columns of a line, counted here and not by what is tested."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in line)


def too_wide(lines: list[str]) -> list[str]:
    """The lines that are wider than the terminal, but for commands and for a path that stands alone."""
    wide = (line for line in lines if width(line) > COLUMNS and not COMMAND.match(line))
    return [line for line in wide if len(line.split()) > 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps on prepared data, evaluated with its base, and what was shown in each language."""
    folder = tmp_path_factory.mktemp("columns")
    data, shown = folder / "data", {}
    for language in LANGUAGES:
        said = ("--lang", language)
        prepare = ("scripts/prepare_data.py", "--out", data, "--overwrite", *said)
        shown["prepare_data", language] = terminal_lines(*prepare)
        name = folder / language
        train = ("scripts/train.py", "scripts/recipes/tiny.yaml", "--data", data, "--run", name, "--max-steps", "2")
        shown["train", language] = terminal_lines(*train, "--eval-steps", "2", "--save-steps", "2", *said)
        few = ("--limit", "2", "--max-new-tokens", "4")
        evaluate = ("scripts/evaluate.py", "--run", name, "--base", *few, *said)
        shown["evaluate", language] = terminal_lines(*evaluate)
        shown["report", language] = terminal_lines("scripts/report.py", name, "--out", folder / "report", *said)
    return shown


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("command", ["prepare_data", "train", "evaluate", "report"])
def test_a_run_from_data_to_report_fits(run, command, language):
    lines = run[command, language]
    assert not too_wide(lines)
    hangul = re.search("[가-힣]", " ".join(line for line in lines if not line.startswith("#")))
    assert hangul or language == "en"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "flags",
    [["--gpu", "T4:2", "--hours", "12"], ["--gpu", "H100:8", "--machines", "2"], ["--gpu", "T4", "--memory", "6"]],
)
def test_a_plan_fits(flags, language):
    assert not too_wide(terminal_lines("scripts/plan.py", "--pairs", "6440", *flags, "--lang", language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_formulas_beside_what_was_measured_fit(language):
    assert not too_wide(terminal_lines("scripts/plan.py", "--check", "--lang", language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_dry_run_fits(language):
    recipe = "scripts/recipes/tiny.yaml"
    assert not too_wide(terminal_lines("scripts/train.py", recipe, "--dry-run", "--lang", language))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits(script, language):
    lines = terminal_lines(f"scripts/{script}", "--help", "--lang", language)
    assert not too_wide([line for line in lines if not line.startswith("    ") or line.startswith(" " * 20)])


def test_what_is_no_terminal_gets_whole_sentences():
    done = run_script("scripts/plan.py", "--pairs", "6440", "--gpu", "T4:2", COLUMNS="40")
    assert max(map(len, done.stdout.splitlines())) > COLUMNS
