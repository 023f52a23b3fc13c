"""Decodes the bytes of a file to text, or says in one sentence what the file is instead."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from llm_qa.console import UserError

LARGEST_FILE_BYTES = 2 * 1024**3
MAGIC = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"BZh91AY": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"7z\xbc\xaf": "a 7z file",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
}


def read_bytes(path: Path) -> bytes:
    """All bytes of a regular file; UserError for what is missing, endless (a pipe, a device) or too large."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder without prepared data: name its files.")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a pipe or a device, which cannot be read twice: save it as a file.")
        if status.st_size > LARGEST_FILE_BYTES:
            raise UserError(f"{path} has more than {LARGEST_FILE_BYTES:,} bytes: split it into several files.")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def decode(path: Path, kind: str = "CSV") -> tuple[str, str]:
    """(text, name of the encoding) of a file; see decode_bytes."""
    return decode_bytes(path, read_bytes(path), kind)


def decode_bytes(path: Path, data: bytes, kind: str = "CSV") -> tuple[str, str]:
    """(text, name of the encoding) of a file's bytes: UTF-8 with or without BOM, UTF-16 with BOM, else cp949.

    Raises UserError for anything that is not text, and, with the encoding and the line, for text with single invalid
    bytes. `kind` is what such a file should be saved as. Archives are never unpacked.
    """
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise UserError(f"{path} is empty.")
    for magic, what in MAGIC.items():
        if data.startswith(magic):
            raise UserError(f"{path} is {what}, not text: save it as {kind} in UTF-8.")
    encodings = [("utf-8-sig", "UTF-8 with BOM")] if data.startswith(b"\xef\xbb\xbf") else []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings.append(("utf-16", "UTF-16"))
    encodings += [("utf-8", "UTF-8"), ("cp949", "cp949")]
    for name, title in encodings:
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        if text.count("\0") > len(text) // 100:
            break
        if re.match(r"\s*<(!doctype|html|\?xml)", text[:200], re.IGNORECASE):
            raise UserError(f"{path} is a web page, not data (a download that asked for a login?).")
        return text, title
    damaged = nearest_encoding(data, encodings)
    if damaged is None:
        raise UserError(f"{path} is neither UTF-8 nor cp949 text: save it as {kind} in UTF-8.")
    title, lines = damaged
    where = f"line {lines[0]:,}" if len(lines) == 1 else f"{len(lines):,} lines, the first is line {lines[0]:,}"
    raise UserError(
        f"{path} is {title} text except for broken bytes in {where}: correct them, or save it as {kind} in UTF-8."
    )


def nearest_encoding(data: bytes, encodings: list[tuple[str, str]]) -> tuple[str, list[int]] | None:
    """(name, lines with invalid bytes) of the encoding that decodes 99% of the text; None if none does."""
    best = None
    for name, title in encodings:
        text = data.decode(name, errors="replace")
        broken = text.count("\ufffd")
        if max(broken, text.count("\0")) * 100 <= len(text) and (best is None or broken < best[0]):
            best = broken, title, [line for line, content in enumerate(text.split("\n"), 1) if "\ufffd" in content]
    return best and best[1:]
