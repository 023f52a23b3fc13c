"""The data that a run was trained on, and whether it is evaluated on the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.data.groups import group_names
from llm_qa.data.phrasings import RECORDS
from llm_qa.data.records import QARecord
from llm_qa.data.splits import load_split
from llm_qa.migrations import read_json


def _trained_on(run: Path) -> dict[str, Any]:
    return read_json(run / files.ENVIRONMENT) if (run / files.ENVIRONMENT).is_file() else {}


def data_of_run(run: Path) -> Path:
    """The prepared folder that the run was trained on, independent of the current folder. UserError if unknown."""
    written = _trained_on(run).get("data")
    if not isinstance(written, str):
        raise UserError(f"{run} does not contain the name of its data: name prepared data with --data.")
    return files.found_from(written, run)


def line_breaks_of_run(run: Path) -> str:
    """A key of LINE_BREAKS: what the preparation of the run's data did to contexts, which is then done to those asked.

    Data of before there was a choice was joined. What is asked stays as it is where the data is gone.
    """
    written = _trained_on(run).get("data")
    data_dir = files.found_from(written, run) if isinstance(written, str) else None
    if data_dir is None or not files.is_prepared(data_dir):
        return "keep"
    options = files.read_json(data_dir / files.MANIFEST).get("options") or {}
    return options.get("line_breaks", "join")


def is_own_data(run: Path, data_dir: Path) -> bool:
    """True where `data_dir` is the data that the run was trained on."""
    return files.is_prepared(data_dir) and files.sha256_file(data_dir / files.MANIFEST) == _trained_on(run).get(
        "data_sha256"
    )


def data_name(run: Path, data_dir: Path) -> str:
    """Name of the folder in eval/ for evaluations on `data_dir`: '' for the run's own data, which has no such folder.

    UserError for a folder that is not prepared data.
    """
    if not files.is_prepared(data_dir):
        raise UserError(f"{data_dir} is not prepared data (it has no {files.MANIFEST}): make it with prepare_data.py.")
    if is_own_data(run, data_dir):
        return ""
    return f"{data_dir.resolve().name}-{files.sha256_file(data_dir / files.MANIFEST)[:8]}"


def evaluated_in(run: Path, data_dir: Path | None) -> str:
    """`data_name` of the data that a run was evaluated on; by default its training data, where it still exists."""
    if data_dir is None:
        written = _trained_on(run).get("data")
        data_dir = files.found_from(written, run) if isinstance(written, str) else None
        if data_dir is None or not files.is_prepared(data_dir):
            return ""
    return data_name(run, data_dir)


def held_out_of(data_dir: Path, split: str) -> str:
    """What a split of prepared data holds out: `records`, or `phrasings` of records that are trained on."""
    options = files.read_json(data_dir / files.MANIFEST).get("options") or {}
    return options.get("held_out", RECORDS) if split == "test" else RECORDS


def training_folder(run: Path, data_dir: Path) -> Path | None:
    """The prepared folder that the run was trained on: `data_dir`, or the one it names; None for missing or changed."""
    return next((folder for folder in (data_dir, data_of_run(run)) if is_own_data(run, folder)), None)


def training_records(run: Path, data_dir: Path) -> list[QARecord] | None:
    """The records that the run was trained on; None, with a message, where its data is missing or changed."""
    if folder := training_folder(run, data_dir):
        if folder != data_dir:
            say(f"note: {data_dir} is not the data of this run, which was trained on {folder}")
        return load_split(folder, "train")
    say(
        f"warning: {data_dir} is not the data of this run, which is missing: records may have been trained on, and "
        "there is no row of nearest training answers"
    )
    return None


def groups_of_split(data_dir: Path, records: list[QARecord]) -> dict[str, str]:
    """Record id -> name of its group among all `records` of a split, grouped as the data was (`--group-by`)."""
    options = files.read_json(data_dir / files.MANIFEST).get("options") or {}
    return group_names(records, by_answers=options.get("group_by", "both") == "both")
