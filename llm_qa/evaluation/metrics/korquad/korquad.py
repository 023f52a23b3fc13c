"""KorQuAD 1.0's exact match and character F1 as a local `evaluate` module: `evaluate.load("<this folder>")`."""

# One import a line: evaluate's import parser takes `import datasets, evaluate` for one module of that name.
import datasets
import evaluate

from llm_qa.evaluation.metrics.measures import character_f1, exact_match

_DESCRIPTION = "Exact match and character F1, 0 to 1, by KorQuAD 1.0's official script; the best over the references."


class KorQuAD(evaluate.Metric):
    """Means over questions of EM and character F1; several references a prediction."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Lim, Kim, Lee 2019: KorQuAD1.0, arXiv:1909.07005",
            inputs_description="predictions: list of str; references: list of lists of str",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        return {
            "exact_match": sum(exact_match(p, r) for p, r in pairs) / len(pairs),
            "character_f1": sum(character_f1(p, r) for p, r in pairs) / len(pairs),
        }
