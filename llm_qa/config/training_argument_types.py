"""Names and types of transformers' TrainingArguments, read from its source without importing it, which takes seconds.

Help and mistakes in recipes and flags answer at once that way. A test holds the result against the class itself.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal

ENUM_FILES = ("training_args.py", "trainer_utils.py", "debug_utils.py")  # where its string enums are defined
KNOWN_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "list": list, "None": None}


@cache
def installed_names() -> dict[str, Any]:
    """Name -> type hint of every TrainingArguments field of the installed transformers.

    A string enum is the Literal of its values; a class that is none of the plain types is Any.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("transformers is not installed: pip install -r requirements.txt")
    folder = Path(next(iter(spec.submodule_search_locations)))
    trees = {name: ast.parse((folder / name).read_text(encoding="utf-8")) for name in ENUM_FILES}
    classes = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    types = {name: values for name, node in classes.items() if (values := _enum_values(node))}
    return {
        field.target.id: _hint(field.annotation, types)
        for field in classes["TrainingArguments"].body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and not _is_computed(field)
    }


def _enum_values(node: ast.ClassDef) -> Any:
    """The Literal of a string enum's values; None for another class."""
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return None
    values = [
        line.value.value
        for line in node.body
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
    ]
    return Literal[tuple(values)] if values else None


def _is_computed(field: ast.AnnAssign) -> bool:
    """Whether a dataclass field is not an argument: field(init=False)."""
    keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
    return any(keyword.arg == "init" and ast.unparse(keyword.value) == "False" for keyword in keywords)


def _hint(annotation: ast.expr, enums: dict[str, Any]) -> Any:
    """The type that an annotation's source says."""
    if isinstance(annotation, ast.Constant):  # None, or an annotation in quotes
        text = annotation.value
        return _hint(ast.parse(text, mode="eval").body, enums) if isinstance(text, str) else text
    if isinstance(annotation, ast.Name):
        return KNOWN_TYPES.get(annotation.id, enums.get(annotation.id, Any))
    if isinstance(annotation, ast.BinOp):
        sides = (_hint(side, enums) for side in (annotation.left, annotation.right))
        return _union(*sides)
    if isinstance(annotation, ast.Subscript):
        generic, inside = ast.unparse(annotation.value).rpartition(".")[2], annotation.slice
        parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if generic == "Literal":
            return Literal[tuple(ast.literal_eval(part) for part in parts)]
        inner = tuple(_hint(part, enums) for part in parts)
        if generic == "Optional":
            return _union(inner[0], None)
        if generic == "Union":
            return _union(*inner)
        if generic in ("list", "List", "dict", "Dict"):
            container: Any = {"list": list, "dict": dict}[generic.lower()]
            return container[inner if len(inner) > 1 else inner[0]]
    return Any


def _union(*hints: Any) -> Any:
    """One of several types; Any where one of them is."""
    from typing import Union

    return Any if Any in hints else Union[hints]  # noqa: UP007  of values that are known here alone
