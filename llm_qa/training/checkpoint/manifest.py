"""A checkpoint's manifest: the size and sha256 of every file, so that damage is found before anything is loaded.

`manifest.json` is the last file that is written into a checkpoint; it contains a sha256 of its own content.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.language import tr
from llm_qa.migrations import migrate, stamped

# DeepSpeed's universal copy of a checkpoint is not listed: it is made from verified files whenever it is needed.
ADDED_LATER = ("latest_universal",)
UNIVERSAL = "_universal"
FEWEST_THREADS = 2


def listed_files(folder: Path) -> list[Path]:
    """Every file that belongs to a checkpoint, relative to it, sorted, without hidden files and the universal copy."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        universal = name.parts[0].endswith(UNIVERSAL) or name.as_posix() in ADDED_LATER
        if not hidden and not universal and name.as_posix() != files.MANIFEST and not path.is_dir():
            found.append(name)
    return found


def sha256_from_disk(path: Path) -> str:
    """Hex sha256 of a file's bytes as the disk has them: the system's cached copy is dropped first."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """fsync a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Hash and flush every file of `folder`, then write manifest.json with the list and `about`. Raises OSError."""
    names = listed_files(folder)

    def entry(name: Path) -> dict[str, Any]:
        sha256 = files.sha256_file(folder / name)
        flush(folder / name)
        return {"bytes": (folder / name).stat().st_size, "sha256": sha256}

    with ThreadPoolExecutor(max(FEWEST_THREADS, os.cpu_count() or 1)) as threads:
        entries = dict(zip([name.as_posix() for name in names], threads.map(entry, names), strict=True))
    content = stamped({"about": about, "bytes": sum(entry["bytes"] for entry in entries.values()), "files": entries})
    with open(folder / files.MANIFEST, "w", encoding="utf-8", newline="\n") as file:
        file.write(_render(content))
        file.flush()
        os.fsync(file.fileno())
    for inner in {folder / name.parent for name in names} | {folder}:
        flush(inner)


def _render(content: dict[str, Any]) -> str:
    sha256 = hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": sha256, **content}, ensure_ascii=False, indent=1) + "\n"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, migrated to the current format.

    Raises ValueError with the reason where it is missing or was changed.
    """
    try:
        text = (folder / files.MANIFEST).read_text(encoding="utf-8")
        content = json.loads(text)
        del content["sha256"]
    except FileNotFoundError:
        raise ValueError(tr("it has no {manifest}, so it was never finished", manifest=files.MANIFEST)) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(tr("its {manifest} cannot be read", manifest=files.MANIFEST)) from None
    if _render(content) != text:
        raise ValueError(tr("its {manifest} is not as it was written", manifest=files.MANIFEST))
    entries = content.get("files")
    if not isinstance(entries, dict) or not all(
        isinstance(e, dict) and {*e} >= {"bytes", "sha256"} for e in entries.values()
    ):
        raise ValueError(tr("its {manifest} lists no files", manifest=files.MANIFEST))
    return migrate(content, files.MANIFEST, folder / files.MANIFEST)


def damage(folder: Path) -> list[str]:
    """A description of every damaged file of a checkpoint; empty when every byte is as it was written.

    Links count as damage, because their target may change or lie outside the folder.
    """
    try:
        expected = read_manifest(folder)["files"]
    except ValueError as error:
        return [str(error)]

    def problem(name: str) -> str | None:
        path, entry = folder / name, expected[name]
        try:
            if not stat.S_ISREG(path.stat().st_mode) or ".." in Path(name).parts or Path(name).is_absolute():
                return tr("{name} is not a file of this folder", name=name)
            if path.stat().st_size != entry["bytes"]:
                size = path.stat().st_size
                return tr("{name} has {size:,} bytes instead of {bytes:,}", name=name, size=size, bytes=entry["bytes"])
            same = sha256_from_disk(path) == entry["sha256"]
            return None if same else tr("{name} has other bytes than were written", name=name)
        except FileNotFoundError:
            return tr("{name} is missing", name=name)
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL
            reason = getattr(error, "strerror", None) or error
            return tr("{name} cannot be read ({reason})", name=name, reason=reason)

    if links := [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink()]:
        return [tr("{name} is a link", name=name) for name in links]
    with ThreadPoolExecutor(max(FEWEST_THREADS, os.cpu_count() or 1)) as threads:
        problems = [found for found in threads.map(problem, expected) if found]
    strangers = [name.as_posix() for name in listed_files(folder) if name.as_posix() not in expected]
    return problems + [tr("{name} does not belong to it", name=name) for name in strangers]
