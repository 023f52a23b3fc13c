"""Turn raw question-answer files into prepared data: read strictly, split by record, account for every row.

    python scripts/prepare_data.py train.csv --out data/mine
    python scripts/prepare_data.py chatbot.csv more.jsonl --out data/chat --question-column Q --answer-column A
    python scripts/prepare_data.py train.csv --out data/cleaned --cleaning original --stopwords stopwords.txt

Without INPUT it takes the bundled data. Reads the original's wide CSV (질문_1.., 답변_1..), CSV with a question and an
answer column, JSONL records and KorQuAD JSON. Cleaning and stopwords touch train and validation only: the test split
stays raw, so that models trained on differently cleaned data are scored on the same questions and references.
"""

import argparse
from pathlib import Path

from llm_qa.console import run_script, say
from llm_qa.data.preparation import PreparationOptions, bundled_file, prepare, summary
from llm_qa.data.readers.rows import ColumnNames


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="files (default: the bundled data)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example data/mine")
    parser.add_argument("--question-column", action="append", default=[], help="a CSV's question column; repeatable")
    parser.add_argument("--answer-column", action="append", default=[], help="a CSV's answer column; repeatable")
    parser.add_argument("--category-column", help="a CSV's category column")
    parser.add_argument("--context-column", help="a CSV's context column")
    parser.add_argument("--id-column", help="a CSV's id column")
    parser.add_argument(
        "--cleaning", default="none", choices=("none", "original"), help="original: as its notebooks did"
    )
    parser.add_argument("--stopwords", help="a stopword file, or 'morphemes' (kiwipiepy finds particles)")
    parser.add_argument("--stopwords-scope", choices=("none", "questions", "all"), help="default: all")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the records (default 0.1)")
    parser.add_argument("--test", type=float, default=0.1, help="share of the records (default 0.1)")
    parser.add_argument("--seed", type=int, default=42, help="of the split")
    parser.add_argument(
        "--group-by",
        default="both",
        choices=("both", "questions"),
        help="records that share a question or an answer (both) stay in one split; questions: only a question",
    )
    parser.add_argument("--max-characters", type=int, default=4096, help="longest question + answer + context")
    parser.add_argument("--overwrite", action="store_true", help="replace other prepared data in --out")
    return parser.parse_args()


def main() -> int:
    """Prepare and print the account."""
    flags = parse_arguments()
    columns = ColumnNames(
        tuple(flags.question_column),
        tuple(flags.answer_column),
        flags.category_column,
        flags.id_column,
        flags.context_column,
    )
    options = PreparationOptions(
        columns=columns,
        cleaning=flags.cleaning,
        stopwords=flags.stopwords,
        stopwords_scope=flags.stopwords_scope,
        validation=flags.validation,
        test=flags.test,
        seed=flags.seed,
        group_by=flags.group_by,
        max_characters=flags.max_characters,
    )
    manifest = prepare(flags.inputs or [bundled_file("train.csv")], flags.out, options, overwrite=flags.overwrite)
    say(summary(manifest, flags.out))
    return 0


if __name__ == "__main__":
    run_script(main)
