"""A digest of everything that determines answers: stored answers are reused only where it is the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import llm_qa.data
import llm_qa.inference
import llm_qa.models
from llm_qa import files
from llm_qa.evaluation.predict import batches, predictions
from llm_qa.models.precision import Precision

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes")
CONFIGURATIONS = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZERS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.jinja")


def answers_key(
    asked: Any, weights: Iterable[Path | str], tokenizer: Path | str, precision: Precision, *settings: Any
) -> str:
    """Hex digest of everything that determines answers: questions, weights, tokenizer, settings and code.

    `weights` are folders (or hub ids) of the base and of the adapter on it, `tokenizer` the tokenizer's; `asked` and
    `settings` are JSON values.
    """
    stamps = [_weights_stamp(place) for place in weights]
    value = [asked, stamps, _contents(tokenizer, TOKENIZERS), _precision(precision), code_stamp(), *settings]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _weights_stamp(place: Path | str) -> list[Any]:
    """A folder's weights by name, size and modification time (hashing 26 GB takes a minute), its configs by content."""
    found = sorted(Path(place).glob("*.safetensors")) if Path(place).is_dir() else []
    return [
        [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found],
        _contents(place, CONFIGURATIONS),
    ]


def _contents(place: Path | str, patterns: tuple[str, ...]) -> list[Any]:
    if not Path(place).is_dir():
        return [str(place)]
    found = sorted({path for pattern in patterns for path in Path(place).glob(pattern)})
    return [[path.name, files.sha256_file(path)] for path in found]


def _precision(precision: Precision) -> dict[str, str]:
    return {key: str(value) for key, value in vars(precision).items() if key != "why"}


@lru_cache(maxsize=1)
def code_stamp() -> str:
    """Digest of the code between question and answer (prompt, tokens, model, decoding, batches) and its libraries."""
    packages = [Path(str(package.__file__)).parent for package in (llm_qa.data, llm_qa.models, llm_qa.inference)]
    sources = [path for folder in packages for path in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256()
    for path in (*sources, Path(predictions.__file__), Path(batches.__file__)):
        digest.update(path.read_bytes())
    for name in LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    return digest.hexdigest()
