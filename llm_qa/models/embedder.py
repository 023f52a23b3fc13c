"""Sentence embeddings, by a model of sentence-transformers, which is optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from llm_qa.console import UserError
from llm_qa.language import tr
from llm_qa.models.safety import PICKLES, refuse_unsafe_weights

RETRIEVAL = "retrieval_embedder"  # the recipe's key of a run's embedder, which is a local folder


def check_installed() -> None:
    """UserError where the package is missing."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError(
            tr("Sentence embeddings need sentence-transformers, which is optional: pip install -e '.[submission]'.")
        )


def check_folder(folder: str | Path, setting: str = RETRIEVAL) -> None:
    """UserError, with what `setting` says, for what is no local model or has weights that are no safetensors."""
    for path in Path(folder).rglob("*"):
        if path.suffix in PICKLES:
            refuse_unsafe_weights(path.parent)
    if not any((Path(folder) / name).is_file() for name in ("modules.json", "config.json")):
        raise UserError(
            tr(
                "{setting} {folder} is not a sentence-transformers model (it has no modules.json): name a local folder "
                "of one.",
                setting=setting,
                folder=folder,
            )
        )


@lru_cache(maxsize=2)
def load_embedder(name: str, setting: str = "--embedder"):
    """A SentenceTransformer of a hub id or a local folder: safetensors only, no code from it runs; loaded once.

    Raises UserError, with what `setting` says, when the package is not installed, or the model is missing or not safe
    to load.
    """
    check_installed()
    if setting == RETRIEVAL or Path(name).is_dir():
        check_folder(name, setting)
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except Exception as error:  # it raises errors of transformers and huggingface_hub too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise UserError(
            tr("{setting} {name} cannot be loaded: {reason}.", setting=setting, name=name, reason=reason)
        ) from error


def embed(embedder, texts: Sequence[str]) -> np.ndarray:
    """(texts, dimensions) float32: unit vectors; equal texts are embedded once."""
    different = list(dict.fromkeys(texts))
    vectors = embedder.encode(
        different, batch_size=64, convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False
    ).astype(np.float32)
    place = {text: i for i, text in enumerate(different)}
    return vectors[[place[text] for text in texts]]
