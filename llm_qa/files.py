"""Names of the files on disk, and how they are written: whole or not at all, UTF-8, hashed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_qa.console import UserError
from llm_qa.language import tr

SPLITS = ("train", "validation", "test")

# Prepared data: data/<name>/
REJECTED = "rejected.jsonl"
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"  # passages of --documents, where it was given

# Run: runs/<name>/
RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
LOG = "log.jsonl"
SAMPLES = "samples.jsonl"  # what the model answered to a few validation questions as it was trained
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
MODEL = "model"
TRAINING = "training.json"
ANSWER_TOKENS = "answer_tokens_99"  # in training.json: 99 of 100 training answers have no more tokens, the end counted
MARKS = "marks.jsonl"  # what people say of its answers (scripts/chat.py)
REFERENCES = "references.jsonl"  # what a run with `retrieval` puts before questions: training records, then passages
REFERENCE_VECTORS = "references.npy"  # embeddings of their texts, of a run with `retrieval_embedder`
MICRO_BATCH = "micro_batch.json"  # the micro-batch that --auto-micro-batch found to fit

# Evaluation: runs/<name>/eval/<split>/, and <split>-base/, -nearest/, -merged/, -joined/ and others beside it; of other
# data than the run's own in eval/<data>-<sha256, 8 digits>/
PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"
TUNED, BASE, NEAREST = "tuned", "base", "nearest"  # whose answers: the run's, its untuned base's, training answers
# The same two, asked with references that they were not trained with (evaluate.py --retrieval).
TUNED_WITH, BASE_WITH = "with-references", "base-with-references"
MERGED = "merged"  # the answers of a run's exported weights
JOINED = "joined"  # the run's answers to two of the split's questions at once
KOBEST = "kobest"  # runs/<name>/eval/kobest/scores.json


def split_file(data_dir: str | Path, split: str) -> Path:
    """`data/<name>/<split>.jsonl`."""
    return Path(data_dir) / f"{split}.jsonl"


def evaluation_dir(run_dir: str | Path, split: str, label: str = TUNED, data: str = "") -> Path:
    """Where predictions and scores lie: `eval/<split>/` of the run's model, `eval/<split>-<label>/` of the others.

    `data` is the folder in between for data that is not the run's own (`run_data.data_name`).
    """
    return Path(run_dir) / "eval" / data / (split if label == TUNED else f"{split}-{label}")


def found_from(path: str | Path, run_dir: str | Path) -> Path:
    """A relative path that a run wrote where it was trained, as it is reached from here.

    It is looked for in the folders above the run, nearest first, and else here, where another project may have one of
    the same name. The path as written where it is found nowhere, so that a message names that.
    """
    path = Path(path)
    if path.is_absolute():
        return path
    places = (folder / path for folder in Path(run_dir).resolve().parents)
    found = next((place for place in places if place.exists()), path)
    return path if found.resolve() == path.resolve() else found


def is_prepared(path: str | Path) -> bool:
    """True for a folder written by prepare_data.py."""
    return (Path(path) / MANIFEST).is_file()


def check_exists(paths: Iterable[str | Path], flag: str) -> None:
    """UserError for the first path that is not there; at once, before libraries that take seconds are imported."""
    for path in paths:
        if not Path(path).exists():
            raise UserError(
                tr("{path} does not exist: name a file or folder that does with {flag}.", path=path, flag=flag)
            )


def check_run(run_dir: str | Path) -> None:
    """UserError for a folder that is no run."""
    if not (Path(run_dir) / RECIPE).is_file():
        raise UserError(
            tr(
                "{run_dir} is not a run: it has no {recipe}. Name one with --run (train.py makes them).",
                run_dir=run_dir,
                recipe=RECIPE,
            )
        )


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(staged, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError as error:
        raise UserError(tr("{path} cannot be written: {reason}.", path=path, reason=error.strerror)) from error
    finally:
        if staged.is_file():
            staged.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with Hangul as Hangul."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file; a missing or broken one is a UserError that names it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(tr("{path} does not exist.", path=path)) from None
    except (OSError, ValueError) as error:
        raise UserError(tr("{path} is not a readable text file: {error}.", path=path, error=error)) from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(tr("{path} does not exist.", path=path)) from None
    except (OSError, ValueError) as error:
        raise UserError(tr("{path} is not a readable JSON file: {error}.", path=path, error=error)) from None


def read_jsonl(path: str | Path) -> list[Any]:
    """Read one JSON value a line; a missing file or a broken line is a UserError that names it."""
    return list(stream_jsonl(path))


def stream_jsonl(path: str | Path) -> Iterator[Any]:
    """The values of read_jsonl one after another, in the memory of one."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        value = json.loads(line)
                    except ValueError as error:
                        raise UserError(
                            tr("{path}, line {number}, is not JSON: {error}.", path=path, number=number, error=error)
                        ) from None
                    yield value
    except FileNotFoundError:
        raise UserError(tr("{path} does not exist.", path=path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(tr("{path} cannot be read: {error}.", path=path, error=error)) from None
