"""The flags for preparing raw files, shared by prepare_data.py and train.py --data RAW."""

from __future__ import annotations

import argparse

from llm_qa.data.documents import PASSAGE_CHARACTERS
from llm_qa.data.phrasings import PHRASINGS, RECORDS
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.readers.rows import ColumnNames
from llm_qa.data.text import LINE_BREAKS
from llm_qa.language import later, tr


def add_preparation_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of PreparationOptions except the seed of the split, which has another name in train.py."""
    defaults = PreparationOptions()
    group = parser.add_argument_group("how raw files are prepared")
    of_questions = later("column or JSON key of the question; repeatable")
    of_answers = later("column or JSON key of the answer; repeatable")
    group.add_argument("--question-column", action="append", default=[], help=of_questions)
    group.add_argument("--answer-column", action="append", default=[], help=of_answers)
    group.add_argument("--category-column", help="column or JSON key of the category")
    group.add_argument("--context-column", help="column or JSON key of the context")
    group.add_argument("--id-column", help="column or JSON key of the id")
    group.add_argument("--sheet", help="of an Excel workbook: a sheet's name or number (default: the first)")
    group.add_argument(
        "--line-breaks",
        default=defaults.line_breaks,
        choices=tuple(LINE_BREAKS),
        help="inside answers and contexts: keep them, or join the lines",
    )
    group.add_argument(
        "--learn-turns",
        default=defaults.learn_turns,
        choices=("last", "all"),
        help="of conversations: train the last answer, or every one, each with the turns before it",
    )
    group.add_argument(
        "--cleaning", default=defaults.cleaning, choices=("none", "original"), help="original: as its notebooks did"
    )
    group.add_argument("--stopwords", help="a stopword file, or 'morphemes' (kiwipiepy finds particles)")
    group.add_argument("--stopwords-scope", choices=("none", "questions", "all"), help="default: all")
    for name, kind in (("validation", float), ("test", share_or_phrasings)):
        share = getattr(defaults, name)
        told = tr("share of the records (default {share})", share=share)
        if name == "test":
            told += tr("; or 'phrasings': one wording of each trained fact")
        group.add_argument(f"--{name}", type=kind, default=share, help=told)
    group.add_argument(
        "--group-by",
        default=defaults.group_by,
        choices=("both", "questions"),
        help="records that share a question or an answer (both) stay in one split; questions: only a question",
    )
    group.add_argument(
        "--max-characters", type=int, default=defaults.max_characters, help="longest question + answer + context"
    )
    group.add_argument(
        "--documents",
        metavar="FOLDER",
        help="text and Markdown files of your own (.txt, .md), whose passages a run with retrieval also looks up",
    )
    group.add_argument(
        "--passage-characters",
        type=int,
        help=tr("longest passage of --documents (default {characters})", characters=PASSAGE_CHARACTERS),
    )


def share_or_phrasings(text: str) -> float | str:
    """The value of --test: a number, or the word phrasings."""
    if text == PHRASINGS:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither a share, like 0.1, nor the word {PHRASINGS}") from None


def preparation_options(flags: argparse.Namespace) -> PreparationOptions:
    """PreparationOptions from the flags of add_preparation_flags."""
    return PreparationOptions(
        columns=ColumnNames(
            tuple(flags.question_column),
            tuple(flags.answer_column),
            flags.category_column,
            flags.id_column,
            flags.context_column,
        ),
        cleaning=flags.cleaning,
        stopwords=flags.stopwords,
        stopwords_scope=flags.stopwords_scope,
        validation=flags.validation,
        test=0.0 if flags.test == PHRASINGS else flags.test,
        held_out=PHRASINGS if flags.test == PHRASINGS else RECORDS,
        group_by=flags.group_by,
        max_characters=flags.max_characters,
        sheet=flags.sheet,
        line_breaks=flags.line_breaks,
        learn_turns=flags.learn_turns,
        documents=flags.documents,
        passage_characters=flags.passage_characters,
    )
