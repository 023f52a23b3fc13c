"""What decides predictions, and answers of an earlier evaluation."""

import os

from llm_qa.evaluation.answering import fingerprint, join_answers, question_rows


def test_the_fingerprint_is_of_questions_weights_and_settings(records, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = fingerprint(records, tmp_path, "model", {"seed": 0})
    assert fingerprint(records, tmp_path, "model", {"seed": 0}) == first
    others = {
        fingerprint(records[1:], tmp_path, "model", {"seed": 0}),
        fingerprint(records, tmp_path, "model", {"seed": 1}),
        fingerprint(records, tmp_path / "nowhere", "model", {"seed": 0}),
    }
    os.utime(weights, ns=(0, 0))
    others.add(fingerprint(records, tmp_path, "model", {"seed": 0}))
    assert len(others - {first}) == 4


def test_a_row_a_question_and_answers_join_only_their_own(records):
    rows = question_rows(records[:2])
    assert [(row["id"], row["question_index"]) for row in rows] == [("R00", 0), ("R00", 1), ("R01", 0), ("R01", 1)]
    assert rows[0]["reference_characters"] == [len(text) for text in records[0].answers]
    given = {"prediction": "답", "stopped": True, "generated_tokens": 1, "reference_bits": [1.0, 2.0]}
    joined = join_answers(rows, [{**row, "closest_training": "old", **given} for row in rows])
    assert [row["prediction"] for row in joined] == ["답"] * 4
    assert "closest_training" not in joined[0]
    assert join_answers(rows, [{**row, **given} for row in rows[1:]]) == []
