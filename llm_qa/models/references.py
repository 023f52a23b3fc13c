"""The references of a run: how they are found, and what is kept of them, with which its questions are asked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.data.documents import Passage
from llm_qa.data.records import QARecord
from llm_qa.data.reference_index import EmbeddingIndex
from llm_qa.data.references import Reference, References, Retrieval
from llm_qa.language import tr
from llm_qa.models.embedder import RETRIEVAL, embed, load_embedder


def retrieval_of(recipe: Recipe) -> Retrieval:
    """What the recipe says of references."""
    return Retrieval(recipe.retrieval, recipe.retrieval_hit, recipe.seed)


def references_of(
    records: Sequence[QARecord], recipe: Recipe, passages: Sequence[Passage], vectors: np.ndarray | None = None
) -> References:
    """References found as the recipe says; `vectors` are those of an earlier index of the same (ValueError if not).

    UserError where the recipe's embedder cannot be loaded.
    """
    retrieval = retrieval_of(recipe)
    if not recipe.retrieval_embedder:
        return References(records, retrieval, passages)
    embedder = load_embedder(recipe.retrieval_embedder, RETRIEVAL)
    make_index = partial(EmbeddingIndex, embed=partial(embed, embedder), vectors=vectors)
    references = References(records, retrieval, passages, make_index)
    embedder.to("cpu")  # what is left are single questions, and a GPU's memory is the model's
    return references


def keep_references(run_dir: Path, references: References) -> None:
    """Write a run's records and passages, and the vectors of an embedder, into its folder."""
    if isinstance(references.index, EmbeddingIndex):
        content = io.BytesIO()
        np.save(content, references.index.vectors, allow_pickle=False)
        files.write_bytes(run_dir / files.REFERENCE_VECTORS, content.getvalue())
    files.write_jsonl(run_dir / files.REFERENCES, [reference.to_json() for reference in references.all])


def references_files(run_dir: str | Path, recipe: Recipe) -> list[Path]:
    """The files that `keep_references` wrote; UserError where one is missing. Of a run with retrieval."""
    names = [files.REFERENCES, *([files.REFERENCE_VECTORS] if recipe.retrieval_embedder else [])]
    paths = [Path(run_dir) / name for name in names]
    for path in paths:
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
    return paths


def references_of_run(run_dir: str | Path, recipe: Recipe) -> References | None:
    """The index of a run's training records and passages; None for a run without retrieval.

    UserError where its files of them, or its embedder, are missing or cannot be read: without them the model would be
    asked otherwise than it was trained.
    """
    if not recipe.retrieval:
        return None
    path, *of_vectors = references_files(run_dir, recipe)
    if recipe.retrieval_embedder:
        recipe = replace(recipe, retrieval_embedder=str(files.found_from(recipe.retrieval_embedder, run_dir)))
        load_embedder(recipe.retrieval_embedder, RETRIEVAL)  # here, so that a fault of it is not one of the files
    try:
        found = [reference_from_json(value) for value in files.read_jsonl(path)]
        records = [reference for reference in found if isinstance(reference, QARecord)]
        passages = [reference for reference in found if isinstance(reference, Passage)]
        path = of_vectors[0] if of_vectors else path
        vectors = np.load(path, allow_pickle=False) if of_vectors else None
        return references_of(records, recipe, passages, vectors)
    except (ValueError, EOFError) as error:
        raise UserError(
            tr("{path} is damaged ({error}): copy it back, or train again.", path=path, error=error)
        ) from None


def reference_from_json(value: Any) -> Reference:
    """A line of references.jsonl: a training record, or a passage; ValueError says what is wrong."""
    is_passage = isinstance(value, dict) and "text" in value
    return Passage.from_json(value) if is_passage else QARecord.from_json(value)
