"""Files of KoBEST's form, a few rows a task."""

from __future__ import annotations

from pathlib import Path

from llm_qa import files
from llm_qa.data.readers.kobest import SPLIT_FILES, TASKS


def kobest_row(task: str, i: int) -> dict:
    """The i-th row of a task; labels take turns."""
    label = i % 2
    return {
        "boolq": {"paragraph": f"벽지는 {i}일 말린다.", "question": "벽지를 말리나?", "label": label},
        "copa": {
            "premise": f"벽지가 {i}번 들떴다.",
            "question": ("원인", "결과")[label],
            "alternative_1": "습기가 많았다.",
            "alternative_2": "마루를 깔았다.",
            "label": label,
        },
        "hellaswag": {
            "context": f"{i}번 방에 벽지를 바른다.",
            "ending_1": "풀을 바른다.",
            "ending_2": "잠을 잔다.",
            "ending_3": "밥을 먹는다.",
            "ending_4": "노래한다.",
            "label": i % 4,
        },
        "sentineg": {"sentence": f"{i}번 시공이 {('좋았다', '나빴다')[label]}", "label": 1 - label},
        "wic": {"word": "눈", "context_1": "눈이 온다.", "context_2": f"눈이 {i}번 아프다.", "label": label},
    }[task]


def make_kobest(folder: Path, records: int = 4) -> Path:
    """Write <task>/train.jsonl and test.jsonl of every task."""
    for task in TASKS:
        for name in SPLIT_FILES.values():
            files.write_jsonl(folder / task / name, [kobest_row(task, i) for i in range(records)])
    return folder
