"""The bytes of a file -> text, or one sentence about what the file is instead."""

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


def decode(path: Path) -> tuple[str, str]:
    """(text, name of the encoding) of a file: UTF-8 with or without BOM, UTF-16 with BOM, else cp949.

    Raises UserError for anything that is no text. Nothing is ever unpacked.
    """
    data = read_bytes(path)
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise UserError(f"{path} is empty.")
    for magic, what in MAGIC.items():
        if data.startswith(magic):
            raise UserError(f"{path} is {what}, not text: save it as CSV in UTF-8.")
    encodings = [("utf-8-sig", "UTF-8 with BOM")] if data.startswith(b"\xef\xbb\xbf") else []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings.append(("utf-16", "UTF-16"))
    line = 1
    for name, title in [*encodings, ("utf-8", "UTF-8"), ("cp949", "cp949")]:
        try:
            text = data.decode(name)
        except UnicodeDecodeError as error:
            if name == "utf-8":
                line += data.count(b"\n", 0, error.start)
            continue
        if text.count("\0") > len(text) // 100:
            break
        if re.match(r"\s*<(!doctype|html|\?xml)", text[:200], re.IGNORECASE):
            raise UserError(f"{path} is a web page, not data (a download that asked for a login?).")
        return text, title
    raise UserError(
        f"{path} is neither UTF-8 nor cp949 text (it stops being UTF-8 in line {line:,}): save it as CSV in UTF-8."
    )
