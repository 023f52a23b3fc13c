"""Rows of questions with their groups."""

from llm_qa.data.groups import group_names
from llm_qa.evaluation.predict.predictions import question_rows


def test_a_row_a_question_with_the_group_of_its_record(records):
    rows = question_rows(records[:2], {"R00": "R00", "R01": "R00"})
    assert [(row["id"], row["question_index"]) for row in rows] == [("R00", 0), ("R00", 1), ("R01", 0), ("R01", 1)]
    assert [row["group"] for row in rows] == ["R00"] * 4
    assert rows[0]["reference_characters"] == [len(text) for text in records[0].answers]
    assert len({row["group"] for row in question_rows(records, group_names(records))}) == 20
