"""chrF++ with several references as a local `evaluate` module: `evaluate.load("<this folder>")`."""

# One import a line: evaluate's import parser takes `import datasets, evaluate` for one module of that name.
import datasets
import evaluate

from llm_qa.evaluation.metrics.measures import chrf, chrf_signature

_DESCRIPTION = "chrF++ by sacrebleu, 0 to 100: the mean of sentence scores, each with its best reference."


class ChrF(evaluate.Metric):
    """Mean sentence chrF++; the number of references may differ from question to question."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Popović 2017: chrF++: words helping character n-grams, WMT17",
            inputs_description="predictions: list of str; references: list of lists of str",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        scores = [chrf(p, r) for p, r in zip(predictions, references, strict=True)]
        return {"chrf": sum(scores) / len(scores), "signature": chrf_signature()}
