"""Prepares raw files: a folder with three splits, the rejected rows and a manifest that accounts for every row."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, progress, say
from llm_qa.data.documents import document_files, read_documents
from llm_qa.data.groups import group_records
from llm_qa.data.phrasings import PHRASINGS, RECORDS, hold_out_phrasings
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.preparation_summary import summary
from llm_qa.data.readers import read_files
from llm_qa.data.records import QARecord
from llm_qa.data.splits import crossing_texts, split_records
from llm_qa.data.text import Cleaning

SCHEMA_VERSION = 3  # 2: line breaks are kept, and only equal texts are duplicates; 3: messages of conversations
CLEANED_SPLITS = ("train", "validation")  # users write uncleaned Korean, so the test split stays raw


def bundled_file(name: str) -> Path:
    """Path of a data file that comes with the package: train.csv or test.csv."""
    return Path(str(resources.files("llm_qa.data") / "bundled" / name))


def data_root() -> Path:
    """Where raw files named to train.py are prepared: $LLM_QA_DATA, else ./data."""
    return Path(os.environ.get("LLM_QA_DATA") or "data")


def prepared_folder(paths: list[str] | None, options: PreparationOptions | None = None) -> Path:
    """The prepared folder that `--data` names; raw files are prepared first (no paths: the bundled data).

    The folder's name depends on the files' contents, the options and SCHEMA_VERSION. Raises UserError for several
    folders, for folders among files, and for options with a folder that is prepared already.
    """
    paths = paths or []
    folders = [path for path in paths if Path(path).is_dir()]
    if folders and len(paths) > 1:
        raise UserError(
            f"--data takes one prepared folder, or raw files, and {folders[0]} is a folder among {len(paths)} paths: "
            "prepare all raw files together with prepare_data.py to train on them at once."
        )
    if folders:
        if options and options != PreparationOptions():
            raise UserError(
                f"--data {folders[0]} is prepared already, so the flags for preparing have no effect: leave them "
                "out, or name the raw files."
            )
        return Path(folders[0])
    inputs = [Path(path) for path in paths] if paths else [bundled_file("train.csv")]
    options = options or PreparationOptions()
    documents = document_files(options.documents) if options.documents else []
    read = [path for path in (*inputs, Path(options.stopwords or ""), *documents) if path.is_file()]
    decides = [SCHEMA_VERSION, options.to_json(), *([path.name, files.sha256_file(path)] for path in read)]
    digest = hashlib.sha256(json.dumps(decides, ensure_ascii=False).encode()).hexdigest()[:8]
    out = data_root() / f"{inputs[0].stem if paths else 'bundled'}-{digest}"
    if is_intact(out):  # it may be on a read-only disk
        say(f"{out} already holds exactly this data\n{summary(files.read_json(out / files.MANIFEST), out)}")
    else:
        prepare(inputs, out, options, overwrite=True, flag="LLM_QA_DATA")
    return out


def is_intact(out: Path) -> bool:
    """True for prepared data of which every file is as it was written."""
    return files.is_prepared(out) and all(
        (out / name).is_file() and files.sha256_file(out / name) == digest
        for name, digest in files.read_json(out / files.MANIFEST)["sha256"].items()
    )


def prepare(
    inputs: list[Path], out: str | Path, options: PreparationOptions, *, overwrite: bool = False, flag: str = "--out"
) -> dict[str, Any]:
    """Read, split, clean and write prepared data; says what was read and kept, and returns the manifest.

    The split is made on the raw texts, so the same records are held out whatever the cleaning; texts that stand in
    several splits are counted after cleaning too. A folder that already holds the same data is kept; other data there
    is a UserError, and a folder of something else is never touched. `flag` is how sentences say that `out` is named.
    """
    options.check()
    passages, documents = read_documents(options.documents, options.longest_passage) if options.documents else ([], [])
    named, out = out, check_out(Path(out), flag)
    cleaning = Cleaning.from_options(options.cleaning, options.stopwords, options.stopwords_scope or "all")
    result = read_files(
        inputs,
        options.columns,
        max_characters=options.max_characters,
        sheet=options.sheet,
        line_breaks=options.line_breaks,
        learn_turns=options.learn_turns,
    )
    result.merge_same_questions()
    splits = split_records(
        result.records,
        validation=options.validation,
        test=options.test,
        seed=options.seed,
        by_answers=options.group_by == "both",
    )
    crossing = crossing_texts(splits)
    if options.held_out == PHRASINGS:  # their answers are trained, on purpose
        splits["train"], splits["test"] = hold_out_phrasings(splits["train"], options.seed)
    groups = group_records(result.records, by_answers=options.group_by == "both")
    cleaned, emptied = {}, {}
    for split, records in splits.items():
        cleaned[split], emptied[split] = clean_split(records, cleaning)
    seen = cleaned if options.held_out == RECORDS else {split: cleaned[split] for split in CLEANED_SPLITS}
    for kind, count in crossing_texts(seen).items():  # as the model sees them: cleaning can make texts equal
        crossing[kind] = max(crossing[kind], count)
    for split in CLEANED_SPLITS:
        splits[split] = cleaned[split]
        result.reject(emptied[split], "nothing left after cleaning")
    if options.held_out == PHRASINGS:  # what cleaning emptied is not trained
        trained = {record.id for record in splits["train"]}
        splits["test"] = [record for record in splits["test"] if record.id in trained]
    rejected = result.rejected
    if not splits["train"]:
        raise UserError("Cleaning left no training record: choose another --cleaning or --stopwords.")

    held = {record.id for record in splits["test"]}
    staged = out.with_name(f".{out.name}.{os.urandom(8).hex()}.part")  # processes of other machines share our ids
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
        for split, records in splits.items():
            files.write_jsonl(files.split_file(staged, split), (record.to_json() for record in records))
        files.write_jsonl(staged / files.REJECTED, (row.to_json() for row in rejected))
        if passages:
            files.write_jsonl(staged / files.DOCUMENTS, (passage.to_json() for passage in passages))
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "inputs": result.files,
            "options": options.to_json(),
            "cleaned_splits": list(CLEANED_SPLITS),
            "rows_read": result.rows_read,
            "kept": sum(account["kept"] for account in result.files),
            "rejected": len(rejected),
            "merged": result.merged_rows,  # rows with the questions of another row: their answers are in its record
            "rejected_by_reason": dict(Counter(short_reason(row.reason) for row in rejected).most_common()),
            "splits": {split: describe(records) for split, records in splits.items()},
            "texts_in_several_splits": crossing,
            "groups": len(groups),
            "largest_group": max(map(len, groups)),
            "test_groups": sum(not held.isdisjoint(record.id for record in group) for group in groups),
            **({"documents": documents} if documents else {}),
            "sha256": {path.name: files.sha256_file(path) for path in sorted(staged.iterdir())},
        }
        manifest = json.loads(json.dumps(manifest))  # as it will be read back: tuples are lists
        for account in (manifest, *manifest["inputs"]):
            assert account["rows_read"] == account["kept"] + account["rejected"]
        whole = [split for split in files.SPLITS if split != "test" or options.held_out == RECORDS]
        assert manifest["kept"] == manifest["merged"] + sum(len(splits[split]) for split in whole)
        files.write_json(staged / files.MANIFEST, manifest)
        _put_in_place(staged, out, manifest, overwrite)
    except OSError as error:
        raise UserError(f"{flag} {out} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    say(summary(manifest, named))
    return manifest


def check_out(out: Path, flag: str = "--out") -> Path:
    """The folder that `flag` names, with links and dots resolved; UserError if it cannot be filled."""
    try:
        place = out.resolve()
        if place.exists() and not files.is_prepared(place) and not (place.is_dir() and not any(place.iterdir())):
            raise UserError(f"{flag} {out} exists and is not prepared data: name another folder.")
        above = next(folder for folder in place.parents if folder.exists())
        if not above.is_dir():
            raise UserError(f"{flag} {out} cannot be made because {above} is a file: name another folder.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"{flag} {out} cannot be made because {above} may not be written to: name another folder.")
    except (OSError, RuntimeError) as error:  # a name too long, a link to itself, a folder that may not be looked into
        reason = getattr(error, "strerror", None) or "it is a link to itself"
        raise UserError(f"{flag} {out} cannot be used ({reason}): name another folder.") from None
    return place


def _put_in_place(staged: Path, out: Path, manifest: dict[str, Any], overwrite: bool) -> None:
    if files.is_prepared(out):
        if files.read_json(out / files.MANIFEST) == manifest and is_intact(out):
            say(f"{out} already holds exactly this data")
            return
        if not overwrite:
            raise UserError(f"{out} holds other prepared data: name another folder, or prepare with --overwrite.")
        old = out.with_name(f".{out.name}.{os.getpid()}.old")
        out.rename(old)
        staged.rename(out)
        shutil.rmtree(old)
        return
    try:
        if out.is_dir():
            out.rmdir()  # empty, as checked
        out.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(out)
    except OSError:
        if not files.is_prepared(out):
            raise
        _put_in_place(staged, out, manifest, overwrite)  # another process was faster


def clean_split(records: list[QARecord], cleaning: Cleaning) -> tuple[list[QARecord], list[QARecord]]:
    """(records with cleaned texts, records whose texts are empty after cleaning)."""
    kept, emptied = [], []
    for record in progress(records, what="cleaning", unit="records"):
        questions = tuple(dict.fromkeys(text for text in map(cleaning.question, record.questions) if text))
        answers = tuple(dict.fromkeys(text for text in map(cleaning.answer, record.answers) if text))
        if questions and answers:
            kept.append(replace(record, questions=questions, answers=answers))
        else:
            emptied.append(record)
    return kept, emptied


def short_reason(reason: str) -> str:
    """The reason without this row's numbers, by which rejected rows are counted."""
    for end in (":", " (", " of "):
        reason = reason.partition(end)[0]
    return reason


def describe(records: list[QARecord]) -> dict[str, Any]:
    """Counts of a split for the manifest."""
    return {
        "records": len(records),
        "one_phrasing": sum(len(record.questions) == 1 for record in records),
        "pairs": sum(len(record.questions) * len(record.answers) for record in records),
        "categories": dict(sorted(Counter(record.category for record in records if record.category).items())),
    }
