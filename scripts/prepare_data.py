"""Turn raw question-answer files into prepared data: read strictly, split by groups, with an account of every row.

    python scripts/prepare_data.py train.csv --out data/mine
    python scripts/prepare_data.py chatbot.csv more.jsonl --out data/chat --question-column Q --answer-column A
    python scripts/prepare_data.py train.csv --out data/cleaned --cleaning original --stopwords stopwords.txt

Without INPUT it takes the bundled data. Reads CSV and Excel workbooks, wide as the original's (질문_1.., 답변_1..) or
with one question and one answer column, JSON records (also Alpaca's, chat messages, prompt and completion) and KorQuAD
JSON. Cleaning and stopwords change only train and validation: the test split stays raw, so that models trained on
differently cleaned data are scored on the same questions and references. With --questions it also says whether a file
of questions to be answered later asks two things at once, which a recipe can train on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from llm_qa.console import ArgumentParser, run_script, say, say_next, whole_number
from llm_qa.data.advice import advice, next_command
from llm_qa.data.preparation import bundled_file, prepare
from llm_qa.data.preparation_flags import add_preparation_flags, preparation_options
from llm_qa.inference.question_files import note_double_questions, read_questions


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="files (default: the bundled data)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example data/mine")
    parser.add_argument("--questions", type=Path, help="a CSV of questions to be answered later, like test.csv")
    add_preparation_flags(parser)
    parser.add_argument("--seed", type=whole_number, default=42, help="seed of the split")
    parser.add_argument("--overwrite", action="store_true", help="replace other prepared data in --out")
    return parser.parse_args()


def main() -> int:
    """Prepare the data and print the summary."""
    flags = parse_arguments()
    options = replace(preparation_options(flags), seed=flags.seed)
    questions = read_questions(flags.questions) if flags.questions else []
    manifest = prepare(flags.inputs or [bundled_file("train.csv")], flags.out, options, overwrite=flags.overwrite)
    note_double_questions(flags.questions, questions)
    # Imported here, because it takes time that --help and errors in flags should not wait for.
    from llm_qa.evaluation.metrics.catalogue import MEASURES
    from llm_qa.evaluation.statistics.comparison import groups_needed

    tests = sum(measure.better is not None for measure in MEASURES.values())
    for line in advice(manifest, groups_needed(tests)):
        say(line)
    say_next(next_command(manifest, flags.out))
    return 0


if __name__ == "__main__":
    run_script(main)
