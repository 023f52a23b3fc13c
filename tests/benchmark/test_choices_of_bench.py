"""The names that scripts/bench.py offers are those of what it can measure."""

from llm_qa.benchmark import choices
from llm_qa.benchmark.answering import ANSWERING
from llm_qa.benchmark.baselines import BASELINES


def test_choices_are_what_can_be_measured():
    assert tuple(BASELINES) == choices.BASELINES_BY_NAME
    assert tuple(ANSWERING) == choices.ANSWERING_BY_NAME
