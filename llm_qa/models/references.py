"""The references of a finished run: what its questions are asked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.data.documents import Passage
from llm_qa.data.records import QARecord
from llm_qa.data.references import Reference, References, Retrieval
from llm_qa.language import tr


def retrieval_of(recipe: Recipe) -> Retrieval:
    """What the recipe says of references."""
    return Retrieval(recipe.retrieval, recipe.retrieval_hit, recipe.seed)


def references_file(run_dir: str | Path, recipe: Recipe) -> Path:
    """The training records and passages of a run with retrieval; UserError where it is missing."""
    path = Path(run_dir) / files.REFERENCES
    if not path.is_file():
        raise UserError(
            tr(
                "{path} is missing: the run was trained with retrieval {retrieval}, and its "
                "questions cannot be asked without these references. Copy the file back, or train "
                "again.",
                path=path,
                retrieval=recipe.retrieval,
            )
        )
    return path


def references_of_run(run_dir: str | Path, recipe: Recipe) -> References | None:
    """The index of a run's training records and passages; None for a run without retrieval.

    UserError where its file of them is missing or cannot be read: without it the model would be asked otherwise than
    it was trained.
    """
    if not recipe.retrieval:
        return None
    path = references_file(run_dir, recipe)
    try:
        found = [reference_from_json(value) for value in files.read_jsonl(path)]
    except ValueError as error:
        raise UserError(
            tr("{path} is damaged ({error}): copy it back, or train again.", path=path, error=error)
        ) from None
    records = [reference for reference in found if isinstance(reference, QARecord)]
    return References(records, retrieval_of(recipe), [one for one in found if isinstance(one, Passage)])


def reference_from_json(value: Any) -> Reference:
    """A line of references.jsonl: a training record, or a passage; ValueError says what is wrong."""
    is_passage = isinstance(value, dict) and "text" in value
    return Passage.from_json(value) if is_passage else QARecord.from_json(value)
