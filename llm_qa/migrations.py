"""Names that have changed since earlier versions, and how files, recipes and commands of those versions are read.

`recipe.yaml`, `environment.json`, `training.json`, `scores.json` and the manifest of every checkpoint carry a
`format_version`; files without one are of format 1. Whoever renames a key, a value, a flag or a file adds it to the
tables below (for keys of files with a new FORMAT_VERSION), and what older versions have written goes on working.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, say

FORMAT_KEY = "format_version"
FORMAT_VERSION = 2

# Flags of scripts: earlier name -> name of today, and for values (flag of today, earlier value) -> value of today.
RENAMED_FLAGS = {
    "--contenders": "--baselines",
    "--fit": "--auto-micro-batch",
    "--unsaved": "--on-save-error",
    "--max-silence": "--rank-timeout",
    "--again": "--overwrite",
}
RENAMED_FLAG_VALUES = {("--on-save-error", "go-on"): "continue"}

# Recipes and the flags of their keys: earlier key -> key of today, and (key of today, earlier value) -> value of today.
RENAMED_RECIPE_KEYS: dict[str, str] = {}
RENAMED_RECIPE_VALUES: dict[tuple[str, Any], Any] = {}

# Keys that recipes have gained, where a run made before them behaves otherwise than the default of today says:
# key -> what such a run did. It is assumed where the recipe of a run lacks the key.
IMPLIED_BY_OLD_RUNS: dict[str, Any] = {"prompt": "plain"}

# Keys of other files, by the format that renamed them: file name -> path of the key in it -> its last part today.
RENAMED_KEYS: dict[int, dict[str, dict[tuple[str, ...], str]]] = {
    2: {files.MANIFEST: {("about", "fingerprint"): "run_signature"}},
}

# Files of a run folder: name of today -> earlier name.
RENAMED_FILES = {files.MICRO_BATCH: "fit.json"}


def stamped(content: dict[str, Any]) -> dict[str, Any]:
    """What a file of a run says, with the format in which this version writes it."""
    return {FORMAT_KEY: FORMAT_VERSION, **content}


def format_of(content: dict[str, Any], source: str | Path) -> int:
    """The format that a file says it was written in. A later one than this version's is said in a line.

    Raises UserError for what is not a whole number of at least 1.
    """
    version = content.get(FORMAT_KEY, 1)
    if type(version) is not int or version < 1:
        raise UserError(f"{source} has the {FORMAT_KEY} {version!r:.40}, which is not a whole number of at least 1.")
    if version > FORMAT_VERSION:
        say(
            f"note: {source} was written by a newer version of this project (format {version}; this one knows "
            f"{FORMAT_VERSION}): what it does not know is ignored"
        )
    return version


def migrate(content: Any, name: str, source: str | Path) -> Any:
    """The content of the JSON file `name` of any format as one of today; changed in place. UserError as `format_of`."""
    if not isinstance(content, dict):
        return content
    for version in range(format_of(content, source) + 1, FORMAT_VERSION + 1):
        for path, new in RENAMED_KEYS.get(version, {}).get(name, {}).items():
            parent: Any = content
            for key in path[:-1]:
                parent = parent.get(key) if isinstance(parent, dict) else None
            if isinstance(parent, dict) and path[-1] in parent:
                parent[new] = parent.pop(path[-1])
    return content


def read_json(path: str | Path) -> Any:
    """Read a JSON file of a run, of any format; a missing or broken one is a UserError that names it."""
    return migrate(files.read_json(path), Path(path).name, path)


def stored_file(folder: str | Path, name: str) -> Path:
    """Where the file `name` of a run folder lies: under its earlier name where only that is there."""
    path = Path(folder) / name
    earlier = path.with_name(RENAMED_FILES.get(name, name))
    return earlier if earlier.is_file() and not path.exists() else path


def renamed_recipe_keys(values: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """(the recipe in keys and values of today, a sentence for each that was renamed).

    Raises UserError where a setting is there under both of its names.
    """
    current: dict[str, Any] = {}
    told = []
    for key, value in values.items():
        new = RENAMED_RECIPE_KEYS.get(key, key)
        if new != key:
            if new in values:
                raise UserError(f"{source}: {key} is the earlier name of {new}, which is given too: say it once.")
            told.append(f"{source}: {key} is now called {new}")
        if isinstance(value, str) and (new, value) in RENAMED_RECIPE_VALUES:
            told.append(f"{source}: {new}: {value} is now called {RENAMED_RECIPE_VALUES[new, value]}")
            value = RENAMED_RECIPE_VALUES[new, value]
        current[new] = value
    return current, told


def renamed_flags(words: list[str]) -> list[str]:
    """Words of a command line with the flags of today; each earlier name is said in a line.

    A value follows its flag after a space or `=`; recipe keys are not flags of this table (see RENAMED_RECIPE_KEYS).
    """
    current: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        new = RENAMED_FLAGS.get(flag, flag)
        if new != flag:
            say(f"note: {flag} is now called {new}")
        before = current[-1] if current else ""
        if not equals and (before, word) in RENAMED_FLAG_VALUES:
            new = RENAMED_FLAG_VALUES[before, word]
            say(f"note: {before} {word} is now called {before} {new}")
        elif equals:
            value = RENAMED_FLAG_VALUES.get((new, value), value)
        current.append(f"{new}{equals}{value}")
    return current
