"""log.jsonl: whole lines, none lost, also when the disk fills up, the folder is deleted or the process is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.language import tr


class LogFile:
    """One JSON object per line. Lines are also kept in memory: those that a full disk refused are written later."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.bytes_written = 0
        self.failing = False

    def cut_back(self, last_step: int) -> None:
        """Keep the lines up to a step. A line that is cut off, and all after it, belong to steps that are repeated."""
        text = self.path.read_bytes().decode("utf-8", "replace") if self.path.exists() else ""
        self.lines = []
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                break
            if value["step"] <= last_step:
                self.lines.append(value)
        self._write_all()

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; where the file is not as this process left it, write all lines anew."""
        self.lines.append(line)
        if self.failing or not self.path.exists() or self.path.stat().st_size != self.bytes_written:
            self._write_all()
            return
        try:
            with open(self.path, "ab") as file:
                file.write(_as_bytes(line))
                file.flush()
                os.fsync(file.fileno())  # the lines before a checkpoint must be on the disk before it
            self.bytes_written += len(_as_bytes(line))
        except OSError as error:
            self._fails(error.strerror)

    def catch_up(self) -> None:
        """Try again to write the lines that the disk refused."""
        if self.failing:
            self._write_all()

    def _write_all(self) -> None:
        try:
            files.write_jsonl(self.path, self.lines)
        except UserError as error:
            self._fails(str(error))
        else:
            self.bytes_written = sum(len(_as_bytes(line)) for line in self.lines)
            self.failing = False

    def _fails(self, why: str | None) -> None:
        if not self.failing:
            say(
                tr(
                    "{path} cannot be written ({why}): its lines are kept in memory until it can",
                    path=self.path,
                    why=why,
                )
            )
        self.failing = True


def _as_bytes(line: dict[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()
