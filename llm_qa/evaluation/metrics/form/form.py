"""Length ratio, repetition and empty answers as a local `evaluate` module: `evaluate.load("<this folder>")`."""

# One import a line: evaluate's import parser takes `import datasets, evaluate` for one module of that name.
import datasets
import evaluate

from llm_qa.evaluation.metrics.measures import is_empty, length_ratio
from llm_qa.evaluation.metrics.morphemes import repetition, tokenizer_signature

_DESCRIPTION = "The answers' length over the references', repeated runs of four morphemes, and the share of empty ones."


class Form(evaluate.Metric):
    """What answers look like, right or wrong; `repetition` and `empty_share` are means over questions."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Welleck et al. 2020: Neural Text Generation with Unlikelihood Training, arXiv:1908.04319",
            inputs_description="predictions: list of str; references: list of lists of str",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        return {
            "length_ratio": length_ratio(predictions, references),
            "repetition": sum(map(repetition, predictions)) / len(predictions),
            "empty_share": sum(map(is_empty, predictions)) / len(predictions),
            "tokenizer": tokenizer_signature(),
        }
