"""QARecord (placeholder)."""

from __future__ import annotations
from dataclasses import dataclass


@dataclass(frozen=True)
class QARecord:
    id: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    category: str = ""
    context: str = ""

    def pairs(self):
        return [(q, a) for q in self.questions for a in self.answers]
