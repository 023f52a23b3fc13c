"""A synthetic run folder: 12 Korean records of 2 questions in three categories, base and tuned answers, a log."""

from __future__ import annotations

import random
from pathlib import Path

from llm_qa import files
from llm_qa.evaluation.statistics.scoring import score_predictions

TOPICS = {
    "마감재": ["실크 벽지", "합지 벽지", "강화마루", "포세린 타일", "페인트"],
    "시공": ["초배지", "걸레받이", "몰딩", "줄눈"],
    "마감하자": ["곰팡이", "들뜸", "결로"],
}
NOISE = ["있습니다 있습니다 있습니다", "그 것은 하는 수 있는 것이", "", "벽 벽 벽 벽"]


def make_rows(*, tuned: bool, seed: int = 0) -> list[dict]:
    """Predictions of one model: the tuned one's are near the references, the base's are noise."""
    rng = random.Random(seed + tuned)
    rows = []
    for number, (category, topic) in enumerate((c, t) for c, topics in TOPICS.items() for t in topics):
        references = [
            f"{topic}는 습기가 적은 곳에서 완전히 말린 뒤 시공해야 합니다.",
            f"{topic} 시공 전에는 바탕면을 1.5m 자로 확인하고, 젖은 곳이 없는지 살핍니다.",
        ]
        for index, question in enumerate((f"{topic}는 어떻게 시공하나요?", f"{topic}에서 주의할 점은?")):
            reference = references[rng.randrange(2)]
            near = reference[: rng.randrange(len(reference) // 2, len(reference) + 1)]
            rows.append(
                {
                    "id": f"TRAIN_{number:03d}",
                    "question_index": index,
                    "question": question,
                    "category": category,
                    "references": references,
                    "prediction": near if tuned else rng.choice(NOISE),
                    "stopped": tuned or rng.random() < 0.1,
                    "generated_tokens": 20,
                    "reference_bits": [len(r) * rng.uniform(1.5, 2.5) * (1 if tuned else 2) for r in references],
                    "reference_characters": [len(r) for r in references],
                }
            )
    return rows


def make_evaluation(
    run: Path,
    rows: list[dict],
    *,
    label: str = "tuned",
    data_sha256: str = "ab" * 32,
    split: str = "test",
    held_out: str = "records",
) -> None:
    """Write predictions.jsonl and scores.json as scripts/evaluate.py does."""
    folder = files.evaluation_dir(run, split, label)
    files.write_jsonl(folder / files.PREDICTIONS, rows)
    scores = {
        "run": str(run),
        "label": label,
        "model": "embedded",
        "split": split,
        "data": "data/bundled",
        "data_sha256": data_sha256,
        "held_out": held_out,
        "generation": {"max_new_tokens": 64, "do_sample": False, "seed": 0},
        "seconds": 4.0,
        "answers_per_second": 6.0,
        "scores": score_predictions(rows, resamples=400),
    }
    files.write_json(folder / files.SCORES, scores)


def make_run(parent: Path, name: str = "tiny", *, seed: int = 0, with_base: bool = True) -> Path:
    """A finished and evaluated run folder under `parent`; returns its path."""
    run = parent / name
    files.write_text(run / files.RECIPE, "model: embedded\nmethod: lora\nbase_precision: nf4\nlearning_rate: 0.001\n")
    libraries = {"torch": "2.13.0", "transformers": "5.23.0"}
    files.write_json(run / files.ENVIRONMENT, {"python": "3.11", "device": "CPU", "gpus": [], "libraries": libraries})
    log: list[dict] = []
    for step in range(1, 41):
        loss = 5 * 0.95**step + 0.3 * ((step + seed) % 3)
        log.append({"step": step, "epoch": step / 10, "loss": loss, "learning_rate": 1e-3, "tokens_per_second": 900})
        if step % 10 == 0:
            log.append({"step": step, "epoch": step / 10, "validation_loss": 5 * 0.95**step + 0.6})
    files.write_jsonl(run / files.LOG, log)
    training = {
        "wall_seconds": 83.2,
        "tokens": 76_000,
        "tokens_per_second": 913.4,
        "mfu": None,
        "peak_memory_bytes": [412_000_000],
        "seconds_per_epoch": 20.8,
        "epochs": 4,
        "steps": 40,
        "device": "CPU",
        "trainable_parameters": 49_152,
        "total_parameters": 3_200_000,
        "finished": True,
    }
    files.write_json(run / files.TRAINING, training)
    make_evaluation(run, make_rows(tuned=True, seed=seed))
    if with_base:
        make_evaluation(run, make_rows(tuned=False, seed=seed), label="base")
    return run
