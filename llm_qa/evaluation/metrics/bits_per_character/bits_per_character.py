"""Bits per character of reference answers as a local `evaluate` module: `evaluate.load("<this folder>")`."""

# One import a line: evaluate's import parser takes `import datasets, evaluate` for one module of that name.
import datasets
import evaluate

from llm_qa.evaluation.metrics.measures import bits_per_character

_DESCRIPTION = "Sum of -log2 p(reference) over the sum of characters; comparable between tokenizers; lower is better."


class BitsPerCharacter(evaluate.Metric):
    """`predictions` are bits (-log2 p) of each reference, `references` its number of characters."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: float list (bits a reference); references: int list (its characters)",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"bits_per_character": bits_per_character(predictions, references)}
