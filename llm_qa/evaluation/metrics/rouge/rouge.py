"""ROUGE-1, -2 and -L over Kiwi's morphemes as a local `evaluate` module: `evaluate.load("<this folder>")`."""

# One import a line: evaluate's import parser takes `import datasets, evaluate` for one module of that name.
import datasets
import evaluate

from llm_qa.evaluation.metrics.morphemes import rouge_l, rouge_n, tokenizer_signature

_DESCRIPTION = "ROUGE-1, -2 and -L F1 over Kiwi's morphemes, 0 to 1; the best over the references."


class Rouge(evaluate.Metric):
    """Means over questions; the number of references may differ from question to question."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Lin 2004: ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description="predictions: list of str; references: list of lists of str",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        return {
            "rouge1": sum(rouge_n(p, r, 1) for p, r in pairs) / len(pairs),
            "rouge2": sum(rouge_n(p, r, 2) for p, r in pairs) / len(pairs),
            "rougeL": sum(rouge_l(p, r) for p, r in pairs) / len(pairs),
            "tokenizer": tokenizer_signature(),
        }
