"""What the READMEs tell a reader to type exists: commands, paths, flags, make targets; both languages say the same."""

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from llm_qa import files
from llm_qa.config.allowed_training_arguments import training_argument_types
from llm_qa.config.recipe import RECIPE_FIELDS, load_recipe, recipe_flags
from llm_qa.data.preparation_flags import add_preparation_flags

ROOT = Path(__file__).parents[1]
TOP = ("README.md", "README.ko.md")
FOLDERS = ("accelerate_configs/README.md", "scripts/README.md", "tests/README.md", "llm_qa/**/README.md")
PAGES = [
    *TOP,
    ".github/CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for pattern in FOLDERS for path in ROOT.glob(pattern)),
]
MOST_LINES = 130
OURS = r"(?:scripts|tests|llm_qa|accelerate_configs|ds_configs|\.github|\.ci)/"  # how a path of the project begins
INSTALLED = ("python", "accelerate", "pre-commit", "tensorboard")
STARTERS = {"make", "sbatch", "python", *(f".venv/bin/{name}" for name in INSTALLED)}
WITHOUT_SCRIPT = {"install", "install-chat", "install-serve", "lint", "help"}  # make targets
FOREIGN_FLAGS = {"--help", "--nodes", "--gpus-per-node", "--logdir"}  # every script's own, SLURM's and TensorBoard's


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def inline(text: str) -> list[str]:
    """What stands between backticks outside of code blocks, on one line."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> list[str]:
    """Every command: the lines of the bash blocks without comments, and what is a command between backticks."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    typed = [" ".join(line.partition("  #")[0].split()) for line in lines if not line.startswith("#")]
    named = [code for code in inline(text) if re.match(r"(make|python|sbatch|\.venv/bin/\w+) \S", code)]
    return [command for command in [*typed, *named] if command]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(read(page))))


def test_a_top_readme_is_one_page():
    for page in TOP:
        assert len(read(page).splitlines()) <= MOST_LINES, page


def test_both_languages_give_the_same_commands_figures_code_and_sections():
    english, korean = map(read, TOP)
    assert commands(english) == commands(korean)
    assert {code for code in inline(english) if code.startswith("--")} == {
        code for code in inline(korean) if code.startswith("--")
    }
    assert blocks(english, "python") == blocks(korean, "python")
    screens = [re.findall(r"[\d.,%]+", " ".join(blocks(text, "text"))) for text in (english, korean)]
    assert screens[0] == screens[1], "a screen in each language, of the same run"
    rows = [re.findall(r"^\|.*\|$", text, re.MULTILINE) for text in (english, korean)]
    assert len(rows[0]) > 2
    numbers = [[re.findall(r"\d[\d.,]*", row) for row in table] for table in rows]
    assert numbers[0] == numbers[1]
    assert [row.count("|") for row in rows[0]] == [row.count("|") for row in rows[1]]
    assert len(re.findall(r"^## ", english, re.MULTILINE)) == len(re.findall(r"^## ", korean, re.MULTILINE))
    same = {target.replace("_ko.png", ".png") for target in targets(korean)}  # a picture of the page in each language
    assert targets(english) - set(TOP) == same - set(TOP)


def targets(text: str) -> set[str]:
    """What the page's links and pictures lead to, outside of code."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return set(re.findall(r"\]\(([^)]+)\)", prose))


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in targets(read(page)):
        if "://" not in target:
            assert ((ROOT / page).parent / target.partition("#")[0]).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_flags_exist(page):
    """Not those of the CHANGELOG, which names what there was."""
    for code in inline(read(page)):
        for path in re.findall(rf"(?<![\w/.~-]){OURS}[\w./-]*", code):
            assert (ROOT / path).exists(), f"{page} names {path}"
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]*", code):
            assert flag.replace("_", "-").replace("--no-", "--") in known_flags(), f"{page} names {flag}"


@cache
def known_flags() -> set[str]:
    """Flags of the scripts, recipe keys and TrainingArguments names as flags, and those of other programs."""
    paths = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "llm_qa").rglob("*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in paths)
    keys = [*RECIPE_FIELDS, *training_argument_types().keys()]
    preparation = argparse.ArgumentParser()
    add_preparation_flags(preparation)
    launcher = {flag for action in launch_command_parser()._actions for flag in action.option_strings}
    return {
        *re.findall(r'"(--[a-z][a-z-]*)"', sources),
        *("--" + key.replace("_", "-") for key in keys),
        *(flag.replace("_", "-") for flag in launcher),
        *(flag for action in preparation._actions for flag in action.option_strings),
        *FOREIGN_FLAGS,
    }


def is_ours(word: str) -> bool:
    return bool(re.match(OURS, word))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_typed_as_it_stands(command, monkeypatch):
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment variables
        del words[0]
    assert words[0] in STARTERS, "give this kind of command a check of its own here"
    for word in words:
        if is_ours(word):
            assert (ROOT / word).exists(), word
    if words[0] == "make":
        for line in make_lines(words[1:]):
            check_python(line, monkeypatch)
    else:
        check_python(words, monkeypatch)


def make_lines(arguments: list[str]) -> list[list[str]]:
    """The words of each line by which `make ARGUMENTS` would run one of our scripts or pytest."""
    for value in (value for word in arguments for value in word.partition("=")[2].split()):
        assert not is_ours(value) or (ROOT / value).exists(), value
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}  # a make above us has variables
    planned = subprocess.run(
        ["make", "-n", *arguments],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert planned.returncode == 0, planned.stderr
    printed = re.sub(r"\$\(\((\d+) \* (\d+)\)\)", lambda found: str(int(found[1]) * int(found[2])), planned.stdout)
    parts = [part for line in printed.splitlines() for part in re.split(r"&&|\|\||;", line)]
    lines = [part.strip().removeprefix("do ") for part in parts if " scripts/" in part or " -m pytest" in part]
    assert lines or arguments[0] in WITHOUT_SCRIPT, planned.stdout
    return [shlex.split(line) for line in lines]


def check_python(words: list[str], monkeypatch) -> None:
    """Let accelerate's parser and the script's own take the flags; pytest's targets exist."""
    at = next((i for i, word in enumerate(words) if re.fullmatch(r"(?:\S*/)?scripts/\w+\.py", word)), None)
    if at is None:
        for word in words:
            if word.startswith("tests/"):
                assert (ROOT / word).exists(), word
        return
    if any(word.endswith("accelerate") for word in words[:at]):
        launch = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
        assert (ROOT / launch.config_file).is_file(), launch.config_file
    monkeypatch.setattr(sys, "argv", words[at:])
    monkeypatch.chdir(ROOT)
    for check in ("check_exists", "check_run"):  # the reader's own files and runs
        monkeypatch.setattr(files, check, lambda *_: None)
    load_script(words[at]).parse_arguments()


@cache
def load_script(path: str):
    """A script as a module, once."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", TOP)
def test_the_recipe_takes_the_flags_of_the_table_of_gpus(page):
    flags = re.findall(r"^\| \d+ GB \| `([^`]+)` \|", read(page), re.MULTILINE)
    assert len(flags) > 2
    for row in flags:
        load_recipe(ROOT / "scripts" / "recipes" / "qlora_12.8b.yaml", recipe_flags(row.split()))


def test_every_script_recipe_and_target_is_described():
    text = read("scripts/README.md")
    for path in (ROOT / "scripts").iterdir():
        if path.suffix in (".py", ".sh"):
            assert f"| `{path.name}` |" in text
    for recipe in (ROOT / "scripts" / "recipes").glob("*.yaml"):
        assert f"| `{recipe.stem}` |" in text
    for key in RECIPE_FIELDS:
        assert f"`{key}`" in text
    everywhere = "".join(map(read, PAGES))
    for target in re.findall(r"^([a-z0-9-]+):.*## ", read("Makefile"), re.MULTILINE):
        named = f"`{target}`" in everywhere or re.search(rf"make {target}\b", everywhere)
        assert named or target in ("format", "clean"), target


def test_every_own_flag_of_train_is_described():
    """The flags that every run may need; the others show themselves by --help."""
    source = read("scripts/train.py")
    for flag in re.findall(r'"(--[a-z][a-z-]*)"', source):
        assert f"`{flag}`" in read("scripts/README.md"), flag


@pytest.mark.parametrize("page", TOP)
def test_the_python_example_answers(page, neox_folder, tmp_path, monkeypatch, capsys):
    run = tmp_path / "runs" / "mine"
    shutil.copytree(neox_folder, run / "model")
    recipe = {"model": str(neox_folder), "method": "full", "base_precision": "fp32"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(read(page), "python")
    exec(compile(example, page, "exec"), {})
    assert capsys.readouterr().out.strip()
