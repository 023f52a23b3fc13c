"""Every command in the READMEs parses, and both languages give the same ones."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.ko.md")


def commands(readme: str) -> list[str]:
    """The command lines of the bash blocks, without comments."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def load_script(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_languages_give_the_same_commands_figures_and_picture():
    english, korean = ((ROOT / readme).read_text(encoding="utf-8") for readme in READMES)
    assert commands(READMES[0]) == commands(READMES[1])
    assert re.findall(r"```text\n.*?```", english, re.DOTALL) == re.findall(r"```text\n.*?```", korean, re.DOTALL)
    numbers = [re.findall(r"(?<=\| )[\d,.]+(?: GiB)?(?= \|)", text) for text in (english, korean)]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) >= 8
    assert (ROOT / ".github" / "report.png").is_file()


@pytest.mark.parametrize("command", dict.fromkeys(commands(READMES[0])))
def test_every_command_parses(command, monkeypatch):
    words = shlex.split(command)
    if words[0] == "make":
        planned = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert planned.returncode == 0, planned.stderr
        lines = [line for line in planned.stdout.splitlines() if "scripts/" in line]
        assert lines, "a make target shows the script that it runs"
        words = shlex.split(lines[-1].partition("||")[0])
    at = next(i for i, word in enumerate(words) if re.fullmatch(r"scripts/\w+\.py", word))
    assert (ROOT / words[at]).is_file()
    script = load_script(words[at])
    monkeypatch.setattr(sys, "argv", words[at:])
    monkeypatch.chdir(ROOT)
    script.parse_arguments()
    for i, word in enumerate(words[:at]):
        if word == "--config_file":
            assert (ROOT / words[i + 1]).is_file()


def test_the_recipe_table_names_every_recipe():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for recipe in (ROOT / "scripts" / "recipes").glob("*.yaml"):
        assert f"| `{recipe.stem}` |" in text
