"""KoBEST's files -> items of one form: JSON lines as on the hub (skt/kobest_v1), or TSV from SKT's repository.

The TSV files (SKT-LSL/KoBEST_datarepo) name their columns and labels differently in each task.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.encoding import decode

TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")
FIELDS = {
    "boolq": {"paragraph", "question", "label"},
    "copa": {"premise", "question", "alternative_1", "alternative_2", "label"},
    "hellaswag": {"context", "ending_1", "ending_2", "ending_3", "ending_4", "label"},
    "sentineg": {"sentence", "label"},
    "wic": {"word", "context_1", "context_2", "label"},
}
SPLIT_FILES = {"train": "train.jsonl", "test": "test.jsonl"}  # few-shot examples come from train
# task -> (folder, {field: column}, the label's number)
TRUTH = {"TRUE": 1, "FALSE": 0}
PUBLISHED: dict[str, tuple[str, dict[str, str], Callable[[str], int]]] = {
    "boolq": ("BoolQ", {"paragraph": "Text", "question": "Question", "label": "Answer"}, lambda x: TRUTH[x.upper()]),
    "copa": (
        "COPA",
        {"premise": "sentence", "question": "question", "alternative_1": "1", "alternative_2": "2", "label": "Answer"},
        lambda x: {"1": 0, "2": 1}[x],
    ),
    "hellaswag": (
        "HellaSwag",
        {"context": "context", **{f"ending_{i}": f"choice{i}" for i in range(1, 5)}, "label": "label"},
        lambda x: range(4)[int(x)],
    ),
    "sentineg": ("SentiNeg", {"sentence": "Text", "label": "Label"}, lambda x: range(2)[int(x)]),
    "wic": (
        "WiC",
        {"word": "Target", "context_1": "SENTENCE1", "context_2": "SENTENCE2", "label": "ANSWER"},
        lambda x: TRUTH[x.upper()],
    ),
}


def find_split(folder: Path, task: str, split: str) -> Path:
    """The file of a task's split: <task>/<split>.jsonl, else <Task>/<split>.tsv. UserError where there is neither."""
    published = folder / PUBLISHED[task][0] / f"{split}.tsv"
    for path in (folder / task / SPLIT_FILES[split], published):
        if path.is_file():
            return path
    raise UserError(
        f"--kobest-dir {folder} has no {task}/{SPLIT_FILES[split]} and no {published.relative_to(folder)}: copy "
        "skt/kobest_v1 there as JSON lines, or SKT's TSV files as they are."
    )


def read_split(path: Path, task: str) -> list[dict[str, Any]]:
    """The items of a file of `find_split`, by the names of FIELDS, labels as numbers from 0.

    Raises UserError for an empty file and for an invalid item.
    """
    rows = files.read_jsonl(path) if path.suffix == ".jsonl" else _read_tsv(path, task)
    if not rows:
        raise UserError(f"{path} is empty: copy KoBEST's files there again.")
    for number, row in enumerate(rows, 1):
        if lacking := FIELDS[task] - (row.keys() if isinstance(row, dict) else set()):
            raise UserError(f"{path}, line {number}, has no {', '.join(sorted(lacking))}.")
    return rows


def _read_tsv(path: Path, task: str) -> list[dict[str, Any]]:
    _, columns, number_of = PUBLISHED[task]
    rows = list(csv.DictReader(decode(path)[0].splitlines(), delimiter="\t"))
    items = []
    for line, row in enumerate(rows, 2):
        if lacking := [name for name in columns.values() if row.get(name) is None]:
            raise UserError(f"{path}, line {line}, has no {', '.join(lacking)}, as {task}'s TSV has it.")
        item: dict[str, Any] = {field: row[name] for field, name in columns.items()}
        try:
            item["label"] = number_of(item["label"].strip())
        except (KeyError, ValueError, IndexError):
            raise UserError(
                f"{path}, line {line}: {columns['label']} is {item['label'][:40]!r}, not a label."
            ) from None
        items.append(item)
    return items


def write_json_lines(folder: Path, tasks: tuple[str, ...], splits: tuple[str, ...], out: Path) -> None:
    """Write out/<task>/<split>.jsonl of every task, whichever form the folder has it in."""
    for task in tasks:
        for split in splits:
            files.write_jsonl(out / task / SPLIT_FILES[split], read_split(find_split(folder, task, split), task))
