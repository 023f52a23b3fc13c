"""The original notebooks' own cost table, printed beside ours in every report.

Source: the README of the original notebooks (github.com/ttony0321/LLM_QA, February 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.language import later


@dataclass(frozen=True)
class OriginalRun:
    """One row: time per epoch and GPU memory in the words of the original's README."""

    model: str
    method: str
    time_per_epoch: str
    memory: str


ORIGINAL_RUNS = (
    OriginalRun("KoGPT2", later("all weights"), "5 min", "2 GB"),
    OriginalRun("polyglot-ko-1.3b", later("all weights"), "30 min", "8 to 9 GB"),
    OriginalRun("polyglot-ko-12.8b", later("LoRA on 4-bit"), "17 h", "4 to 5 GB"),
)
ORIGINAL_DEVICE = "P100 16 GB"
ORIGINAL_PAIRS = 6440  # 644 records x 2 questions x 5 answers
ORIGINAL_SOURCE = "the original notebooks' README"
