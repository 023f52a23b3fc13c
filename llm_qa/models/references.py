"""The references of a finished run: what its questions are asked with."""

from __future__ import annotations

from pathlib import Path

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.data.records import QARecord
from llm_qa.data.references import References, Retrieval


def retrieval_of(recipe: Recipe) -> Retrieval:
    """What the recipe says of references."""
    return Retrieval(recipe.retrieval, recipe.retrieval_hit, recipe.seed)


def references_file(run_dir: str | Path, recipe: Recipe) -> Path:
    """The training records of a run with retrieval; UserError where it is missing."""
    path = Path(run_dir) / files.REFERENCES
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the run was trained with retrieval {recipe.retrieval}, and its questions cannot be "
            "asked without these records. Copy the file back, or train again."
        )
    return path


def references_of_run(run_dir: str | Path, recipe: Recipe) -> References | None:
    """The index of a run's training records; None for a run without retrieval.

    UserError where its file of records is missing or cannot be read: without it the model would be asked otherwise than
    it was trained.
    """
    if not recipe.retrieval:
        return None
    path = references_file(run_dir, recipe)
    try:
        records = [QARecord.from_json(value) for value in files.read_jsonl(path)]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy it back, or train again.") from None
    return References(records, retrieval_of(recipe))
