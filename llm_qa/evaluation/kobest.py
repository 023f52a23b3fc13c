"""KoBEST through lm-evaluation-harness (optional): five tasks, base and tuned in one run, from a local copy of data.

The tasks are the harness's own, with two changes: the data is read from a folder, and macro F1 is computed here instead
of by a script that the harness would fetch. Source of KoBEST: Kim et al. 2022, arXiv:2204.04541.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_qa.console import UserError
from llm_qa.data.readers.kobest import SPLIT_FILES, find_split, read_split
from llm_qa.evaluation.metrics.catalogue import Measure
from llm_qa.evaluation.statistics.choices import accuracy_of_counts, compare_choices, macro_f1

MACRO_F1 = Measure("f1", "macro F1", "higher", 4, "mean over the classes of F1, 0 to 1; KoBEST's own measure")
KOBEST_MEASURES = (
    MACRO_F1,
    Measure("accuracy", "accuracy", "higher", 4, "share of items answered correctly"),
    Measure("accuracy_normalised", "accuracy per character", "higher", 4, "the same by log probability per character"),
)
_SHOTS = (0, 5, 10, 50)
# F1 of the untuned models by number of few-shot examples; the 3.8B's 50-shot BoolQ and SentiNeg equal the 1.3B's there.
_PUBLISHED = {
    "EleutherAI/polyglot-ko-1.3b": {
        "copa": (0.7196, 0.7193, 0.7204, 0.7206),
        "hellaswag": (0.5247, 0.5260, 0.5278, 0.5427),
        "boolq": (0.3552, 0.4751, 0.4109, 0.4038),
        "sentineg": (0.6790, 0.6257, 0.5514, 0.7851),
    },
    "EleutherAI/polyglot-ko-3.8b": {
        "copa": (0.7595, 0.7608, 0.7638, 0.7788),
        "hellaswag": (0.5707, 0.5830, 0.5670, 0.5787),
        "boolq": (0.4320, 0.5263, 0.4930, 0.4038),
        "sentineg": (0.4858, 0.7950, 0.7320, 0.7851),
    },
    "EleutherAI/polyglot-ko-5.8b": {
        "copa": (0.7745, 0.7676, 0.7775, 0.7887),
        "hellaswag": (0.5976, 0.5998, 0.5979, 0.6208),
        "boolq": (0.4356, 0.5698, 0.5187, 0.5236),
        "sentineg": (0.3394, 0.8841, 0.8808, 0.9521),
    },
    "EleutherAI/polyglot-ko-12.8b": {
        "copa": (0.7937, 0.8108, 0.8037, 0.8369),
        "hellaswag": (0.5954, 0.6306, 0.6098, 0.6118),
        "boolq": (0.4818, 0.6041, 0.6289, 0.6448),
        "sentineg": (0.9117, 0.9015, 0.9345, 0.9723),
    },
}
KOBEST_NOTE = (
    "Intervals: 95%, by bootstrap over items. Macro F1 is tested, by randomisation on the same items, and corrected "
    "with all other tests of this page; accuracy, which says nearly the same, is not."
)
PUBLISHED_SOURCE = (
    "Published: F1 as the Llama-2-Ko model card quotes it for 0, 5, 10 and 50 examples; its HellaSwag was probably "
    "length-normalised (an independent 5-shot run of the 1.3B model gave 0.398, EleutherAI/polyglot#37). The base of "
    "the same run is what the tuned model is to be compared with."
)


def published_scores(model: str, task: str, num_fewshot: int) -> float | None:
    """The published F1 of an untuned model; None where there is none."""
    scores = _PUBLISHED.get(model, {}).get(task)
    return scores[_SHOTS.index(num_fewshot)] if scores and num_fewshot in _SHOTS else None


def check_data(folder: Path, tasks: tuple[str, ...], num_fewshot: int) -> dict[str, int]:
    """Task -> items of its test split; UserError for a missing file, an empty one, or invalid items."""
    counts = {}
    for task in tasks:
        for split in needed_splits(num_fewshot):
            counts[task] = len(read_split(find_split(folder, task, split), task))  # test comes last
    return counts


def needed_splits(num_fewshot: int) -> tuple[str, ...]:
    """The splits that are read: train only for few-shot examples."""
    return ("train", "test") if num_fewshot else ("test",)


def load_harness():
    """The module lm_eval; UserError where it is not installed."""
    try:
        import lm_eval
    except ImportError:
        raise UserError("KoBEST needs lm-evaluation-harness, which is optional: pip install -e '.[kobest]'.") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns that the model is not a name, and of the shots
    return lm_eval


def task_configs(folder: Path, tasks: tuple[str, ...], num_fewshot: int) -> list[dict[str, Any]]:
    """The harness's own task configurations, reading from `folder` and computing F1 without a network."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    stock = Path(lm_eval.tasks.__file__).parent / "kobest"
    configs = []
    for task in tasks:
        config = load_yaml(stock / f"kobest_{task}.yaml")
        config["dataset_path"], config["dataset_name"] = "json", None
        config["dataset_kwargs"] = {
            "data_files": {
                split: str(folder.resolve() / task / SPLIT_FILES[split]) for split in needed_splits(num_fewshot)
            }
        }
        config["training_split"] = "train" if num_fewshot else None
        config["validation_split"] = None
        config["metric_list"] = [
            {"metric": "f1", "aggregation": macro_f1, "higher_is_better": True} if metric["metric"] == "f1" else metric
            for metric in config["metric_list"]
        ]
        configs.append(config)
    return configs


@dataclass(frozen=True)
class Choice:
    """A model's answer to one item, classes by number; `right_normalised` says whether it is right by log probability
    per character (None where the task has no such score)."""

    right: int
    chosen_class: int
    right_normalised: bool | None


def score_model(
    model, tokenizer, folder: Path, tasks: tuple[str, ...], *, num_fewshot: int, batch_size: int, limit: int | None
) -> dict[str, list[Choice]]:
    """Task -> the model's choice for every item, in the order of its test split.

    `folder` holds JSON lines (`write_json_lines`), which the harness reads itself.
    """
    lm_eval = load_harness()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found = lm_eval.simple_evaluate(
        wrapped,
        tasks=task_configs(folder, tasks, num_fewshot),
        task_manager=TaskManager(include_defaults=False),  # else it reads the files of thousands of other tasks
        num_fewshot=num_fewshot,
        limit=limit,
        bootstrap_iters=0,  # choices.py computes the intervals, as comparisons need them too
        log_samples=True,
    )
    chosen = {}
    for task in tasks:
        samples = sorted(found["samples"][f"kobest_{task}"], key=lambda sample: sample["doc_id"])
        chosen[task] = [
            Choice(int(right), int(told), bool(sample["acc_norm"]) if "acc_norm" in sample else None)
            for sample in samples
            for right, told in [sample["f1"]]
        ]
        accuracy = np.mean([choice.right == choice.chosen_class for choice in chosen[task]])
        assert abs(found["results"][f"kobest_{task}"]["acc,none"] - accuracy) < 1e-9, "the harness's own accuracy"
    return chosen


def compare_tasks(base: dict[str, list[Choice]], tuned: dict[str, list[Choice]]) -> dict[str, dict[str, Any]]:
    """Task -> {"f1", "accuracy", "accuracy_normalised" where the task has it}: the results of `compare_choices`."""
    compared = {}
    for task, before in base.items():
        after = tuned[task]
        right = [choice.right for choice in before]
        assert right == [choice.right for choice in after], "the harness gave both models the same items"
        base_classes, tuned_classes = ([choice.chosen_class for choice in choices] for choices in (before, after))
        compared[task] = {"f1": compare_choices(right, base_classes, tuned_classes)}
        compared[task]["accuracy"] = compare_choices(right, base_classes, tuned_classes, accuracy_of_counts)
        if before[0].right_normalised is not None:
            was, now = ([choice.right_normalised for choice in choices] for choices in (before, after))
            compared[task]["accuracy_normalised"] = compare_choices([True] * len(right), was, now, accuracy_of_counts)
    return compared


def choice_rows(base: dict[str, list[Choice]], tuned: dict[str, list[Choice]]) -> list[dict[str, Any]]:
    """Rows of KoBEST's predictions.jsonl: both models' choices by item, numbered as in the task's test.jsonl."""
    rows = []
    for task, before in base.items():
        for item, (one, other) in enumerate(zip(before, tuned[task], strict=True)):
            rows.append(
                {"task": task, "item": item, "right": one.right, "base": one.chosen_class, "tuned": other.chosen_class}
            )
            if one.right_normalised is not None:
                flags = {"base": one.right_normalised, "tuned": other.right_normalised}
                rows[-1] |= {f"{label}_right_normalised": flag for label, flag in flags.items()}
    return rows


def tested_tasks(scores: dict[str, Any]) -> dict[str, Any]:
    """KoBEST's scores.json in the form of `comparison.apply_holm`: macro F1 of every task, each item a group."""
    tasks = {task: measures["f1"] for task, measures in scores["tasks"].items()}
    return {"metrics": {task: {**f1, "groups": f1["records"]} for task, f1 in tasks.items()}}
