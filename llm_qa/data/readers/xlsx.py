"""Excel workbooks (.xlsx): one sheet -> rows of cells as text, merged cells filled down."""

from __future__ import annotations

import datetime
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from llm_qa.console import UserError
from llm_qa.data.readers.columns import listed
from llm_qa.data.readers.csv import MOST_COLUMNS

LARGEST_UNPACKED_BYTES = 512 * 1024**2
MOST_CELLS = 10_000_000
MOST_ROWS = 1_048_576  # Excel's own limit
ZIP = b"PK\x03\x04"


def read_sheet(
    path: Path, data: bytes, sheet: str | None
) -> tuple[list[tuple[int, list[str], str]], list[str], list[str]]:
    """((row number, cells, "") of every row, notes, names of the other sheets) of the named sheet, or the first.

    A sheet is named by its title or by its number from 1.

    Raises UserError for a file that is not a workbook or is too large, and for a sheet that does not exist.
    """
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            f"{path}: an Excel workbook needs openpyxl (pip install openpyxl), or save it as CSV."
        ) from None
    check_archive(path, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about drawings and validations, which are not read
            # read_only: cells are streamed, whatever size the sheet declares. data_only: a formula gives its last shown
            # value.
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
            names = [page.title for page in book.worksheets]
            chosen = find_sheet(path, names, sheet)
            rows = read_cells(path, book.worksheets[chosen])
            filled = fill_merged(rows, merged_areas(book.worksheets[chosen]))
    except UserError:
        raise
    except Exception as error:  # openpyxl has no error of its own for a damaged part
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise UserError(f"{path} is not a readable Excel workbook ({reason}): save it again, or as CSV.") from None
    notes = [f"sheet: {listed([names[chosen]])}"]
    others = names[:chosen] + names[chosen + 1 :]
    if others:
        notes = [f"{notes[0]} (not read, name one with --sheet: {listed(others)})"]
    if filled:
        notes.append(f"merged cells: {filled:,} cell{'s'[: filled > 1]} filled in from above")
    return [(number, row, "") for number, row in enumerate(rows, 1)], notes, others


def check_archive(path: Path, data: bytes) -> None:
    """UserError for a zip file that is not a workbook, is damaged, or would unpack to too many bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        raise UserError(f"{path} is a damaged zip or Excel file: save it again, or as CSV in UTF-8.") from None
    if "xl/workbook.xml" not in {part.filename for part in parts}:
        raise UserError(f"{path} is a zip file, not an Excel workbook: unpack it and name its files.")
    if sum(part.file_size for part in parts) > LARGEST_UNPACKED_BYTES:
        raise UserError(
            f"{path} unpacks to more than {LARGEST_UNPACKED_BYTES:,} bytes: save its sheet as CSV in UTF-8."
        )


def find_sheet(path: Path, names: list[str], sheet: str | None) -> int:
    """The index of a sheet by its name or its number from 1; the first where `sheet` is None."""
    if not names:
        raise UserError(f"{path} has no sheet with cells.")
    if sheet is None:
        return 0
    if sheet in names:
        return names.index(sheet)
    if sheet.isdecimal() and 1 <= int(sheet) <= len(names):
        return int(sheet) - 1
    raise UserError(f"{path} has no sheet {sheet[:100]!r} (--sheet); it has {listed(names)}.")


def read_cells(path: Path, page: Any) -> list[list[str]]:
    """The texts of a sheet up to the last row with text: lists of equal length, empty ones for blank rows."""
    page.reset_dimensions()  # the size that the file declares is often wrong
    rows: list[list[str]] = []
    cells = 0
    for values in page.iter_rows(values_only=True):
        cells += len(values)
        # A row may declare any row number, and openpyxl returns empty rows before it.
        if len(values) > MOST_COLUMNS or cells > MOST_CELLS or len(rows) == MOST_ROWS:
            raise UserError(
                f"{path}: sheet {page.title!r} has values or formats in more than {MOST_COLUMNS:,} columns, "
                f"{MOST_ROWS:,} rows or {MOST_CELLS:,} cells: clear what is not the table, or save it as CSV."
            )
        texts = list(map(cell_text, values))
        rows.append(texts if any(map(str.strip, texts)) else [])
    while rows and not rows[-1]:
        rows.pop()
    width = max(map(len, rows), default=0)
    return [row + [""] * (width - len(row)) if row else row for row in rows]


def merged_areas(page: Any) -> list[tuple[int, int, int, int]]:
    """(first column, first row, last column, last row) of each merged cell, from 1, as the sheet's XML lists them.

    openpyxl lists them only outside its read-only mode, where it creates an object for every covered cell.
    """
    from openpyxl.utils import range_boundaries

    areas: list[Any] = []  # range_boundaries has None for ends that a whole row or column lacks; an area has all four
    with page._get_source() as source:
        for _, element in ElementTree.iterparse(source):
            if element.tag.endswith("}mergeCell"):
                areas.append(range_boundaries(element.get("ref", "")))
            element.clear()
    return areas


def fill_merged(rows: list[list[str]], areas: list[tuple[int, int, int, int]]) -> int:
    """Copy the text of a merged cell to its other rows with text, in its first column; returns how many were filled.

    A cell merged across columns is a title; its text stays in the first of them.
    """
    filled = 0
    for column, first, _, last in areas:
        for row in rows[first:last]:
            if row and (text := rows[first - 1][column - 1 : column]):
                row[column - 1] = text[0]
                filled += bool(text[0])
    return filled


def cell_text(value: Any) -> str:
    """A cell's value as a sheet shows it: whole numbers without ".0", dates without the time 00:00."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value)
