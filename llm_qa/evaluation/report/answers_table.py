"""Every question with every model's answer as CSV and as a workbook, for people who work in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re

from openpyxl import Workbook
from openpyxl.styles import Alignment, Font
from openpyxl.utils import get_column_letter

from llm_qa import files
from llm_qa.evaluation.metrics.catalogue import CHARACTER_F1
from llm_qa.evaluation.report.loading import Report
from llm_qa.evaluation.statistics.scoring import text_scores

CSV, XLSX = "answers.csv", "answers.xlsx"
FORMULA = re.compile(r"[=+\-@\t\r]")  # a cell that begins so is computed by a spreadsheet
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # which a workbook cannot hold
LONGEST_CELL = 32_767  # characters, Excel's limit
WHOSE = {files.BASE: "base", files.TUNED: "tuned", files.NEAREST: "nearest training answer"}
WHOSE |= {files.TUNED_WITH: "tuned with references", files.BASE_WITH: "base with references"}


def answers_table(report: Report) -> tuple[list[str], list[list[str | float]]]:
    """(header, rows): a row for each question, in the order of the evaluation; measures are numbers, all else texts."""
    several = len(report.runs) > 1
    answers = {
        f"{WHOSE[label]}{f' ({run.name})' if several else ''}": evaluation.rows
        for run in report.runs
        for label, evaluation in run.folder.evaluations.items()
    }
    header = ["id", "category", "question", "context", "references", "trained on"]
    header += [title for name in answers for title in (f"answer: {name}", f"character F1: {name}")]
    asked = {(row["id"], row["question_index"]): row for row in report.runs[0].tuned.rows}
    found = [{(row["id"], row["question_index"]): row for row in rows} for rows in answers.values()]
    table = []
    for key, row in asked.items():
        closest = row.get("closest_training")
        trained_on = "" if closest is None else "yes" if closest.get("trained_on") else "no"
        cells: list[str | float] = [row["id"], row["category"], row["question"], row.get("context", "")]
        cells += ["\n".join(row["references"]), trained_on]
        for rows in found:
            text = rows[key]["prediction"]
            cells += [text, round(text_scores(text, tuple(row["references"]))[CHARACTER_F1], 4)]
        table.append([clean(cell) for cell in cells])
    return [str(clean(title)) for title in header], table


def clean(cell: str | float) -> str | float:
    """A text without what neither file can hold: control characters and lone surrogates."""
    if not isinstance(cell, str):
        return cell
    return UNPRINTABLE.sub("", cell).encode("utf-8", "replace").decode()


def as_csv(header: list[str], rows: list[list[str | float]]) -> str:
    """CSV as Excel opens it: UTF-8 with a byte order mark. A text that would be a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell for cell in row])
    return "\ufeff" + text.getvalue()


def as_workbook(header: list[str], rows: list[list[str | float]]) -> bytes:
    """An Excel workbook of one sheet. Texts are text cells, whatever they begin with."""
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title, sheet.freeze_panes = "answers", "D2"
    lines: list[list[str | float]] = [list(header), *rows]
    for number, row in enumerate(lines, 1):
        for column, value in enumerate(row, 1):
            cell = sheet.cell(number, column)
            if isinstance(value, str):
                cell.value = value[:LONGEST_CELL]
                cell.data_type = "s"  # openpyxl takes "=..." for a formula
                cell.alignment = Alignment(wrap_text=True, vertical="top")
            else:
                cell.value = value
            cell.font = Font(bold=number == 1)
    for column, title in enumerate(header, 1):
        wide = title in ("question", "context", "references") or title.startswith("answer: ")
        sheet.column_dimensions[get_column_letter(column)].width = 48 if wide else 14
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()
