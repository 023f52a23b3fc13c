"""What is printed of prepared data: files and how they were read, what was rejected, merged and grouped, the splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import counted, format_table
from llm_qa.language import later, tr


def merged_lines(manifest: dict[str, Any]) -> list[str]:
    """The summary's lines about merged rows and about groups of records, where there are any."""
    records, lines = manifest["kept"] - manifest["merged"], []
    if manifest["merged"]:
        one = manifest["merged"] == 1
        lines.append(
            tr(
                "merged: {merged:,} row repeats the questions of another, so {kept:,} rows are {records:,} records, "
                "each with all of its answers"
                if one
                else "merged: {merged:,} rows repeat the questions of another, so {kept:,} rows are {records:,} "
                "records, each with all of its answers",
                merged=manifest["merged"],
                kept=manifest["kept"],
                records=records,
            )
        )
    if manifest["groups"] < records:
        lines.append(
            tr(
                "groups: records that share {shared} stay together, so {records:,} records are {groups:,} groups, the "
                "largest of {largest:,}",
                shared=tr("a question or an answer" if manifest["options"]["group_by"] == "both" else "a question"),
                records=records,
                groups=manifest["groups"],
                largest=manifest["largest_group"],
            )
        )
    return lines


def documents_lines(manifest: dict[str, Any]) -> list[str]:
    """The summary's line about a user's documents, where there are any."""
    if not (accounts := manifest.get("documents")):
        return []
    count, most = sum(account["passages"] for account in accounts), manifest["options"]["passage_characters"]
    return [
        tr(
            "documents: {files}, {passages} of up to {most:,} characters, which a run with retrieval looks up beside "
            "its training records",
            files=counted(len(accounts), "file"),
            passages=counted(count, "passage"),
            most=most,
        )
    ]


FILE_COLUMNS = (later("file"), later("format"), later("encoding"), later("rows"), later("kept"), later("rejected"))
SPLIT_COLUMNS = (later("split"), later("records"), later("pairs"), later("categories"))


def summary(manifest: dict[str, Any], out: str | Path) -> str:
    """The printed summary: files and how they were read, counts of rejections, splits, texts in several splits."""
    inputs = [
        [
            item["file"],
            item["format"],
            item["encoding"],
            *(f"{item[key]:,}" for key in ("rows_read", "kept", "rejected")),
        ]
        for item in manifest["inputs"]
    ]
    splits = [
        [split, f"{item['records']:,}", f"{item['pairs']:,}", str(len(item["categories"]) or "-")]
        for split, item in manifest["splits"].items()
    ]
    crossing = manifest["texts_in_several_splits"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest["rejected_by_reason"].items())
    rejected = Path(out) / files.REJECTED
    return "\n".join(
        [
            format_table([tr(title) for title in FILE_COLUMNS], inputs),
            *(f"{item['file']}: {note}" for item in manifest["inputs"] for note in item["notes"]),
            tr(
                "rejected: {reasons} (each row with its reason: {path})",
                reasons=reasons,
                path=rejected,
            )
            if reasons
            else tr("rejected: none"),
            *merged_lines(manifest),
            *documents_lines(manifest),
            "",
            format_table([tr(title) for title in SPLIT_COLUMNS], splits),
            tr("texts in more than one split: {questions:,} questions, {answers:,} answers", **crossing),
            tr("prepared data: {out}", out=out),
        ]
    )
