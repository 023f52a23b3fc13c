"""Imports point down only: what is general never imports what is built on it, and no package imports a script."""

import ast
from pathlib import Path

import pytest

# From the bottom to the top. A module may import what stands before it, and its own line; the longest prefix counts.
LAYERS = (
    ("language",),
    ("widths",),
    ("console",),
    ("files",),
    ("migrations",),
    ("config",),
    ("distributed",),
    ("planning.known_gpus",),
    ("planning.this_gpu", "planning.memory", "planning.footprint", "planning.growth"),
    ("planning.speed", "planning.figures"),
    ("data",),
    ("models",),
    ("inference",),
    ("training",),
    ("tuning",),
    ("planning",),
    ("evaluation.metrics", "evaluation.embedding"),
    ("evaluation.statistics", "evaluation.predict", "evaluation.evaluations", "evaluation.kobest"),
    ("evaluation",),
    ("export",),
    ("serving",),
    ("benchmark",),
)
MOST_LINES = 320
RANKS = {f"llm_qa.{prefix}": rank for rank, prefixes in enumerate(LAYERS) for prefix in prefixes}
FILES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in Path("llm_qa").rglob("*.py")}


def rank(module: str) -> int | None:
    """The line of LAYERS that a module stands in; None for the bare package."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 1, -1))
    return next((RANKS[prefix] for prefix in prefixes if prefix in RANKS), None)


def imports(path: Path) -> set[str]:
    """Modules of the package, and scripts, that a file imports anywhere, but for annotations alone."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module for module in inner if module in FILES} or {node.module}
    return {module for module in found if module.split(".")[0] in ("llm_qa", "scripts")}


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_import_points_up(module):
    imported = imports(FILES[module])
    assert not [other for other in imported if other.startswith("scripts")]
    assert rank(module) is not None or not imported, f"{module} has no line in LAYERS: say what it may import"
    up = {other for other in imported if (of := rank(other)) is not None and of > rank(module)}
    assert not up, f"{module} imports what is built on it: {', '.join(sorted(up))}"


def test_no_script_imports_a_script():
    names = {path.stem for path in Path("scripts").glob("*.py")}
    for path in Path("scripts").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not {module.split(".")[0] for module in modules} & (names | {"scripts"}), path


@pytest.mark.parametrize("path", sorted([*FILES.values(), *Path("scripts").glob("*.py")]), ids=str)
def test_a_file_has_one_reason_to_change_and_fits_on_a_few_screens(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{path} has {lines} lines: split it by what its parts change for"
