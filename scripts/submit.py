"""Write the competition's submission.csv: a run's answers to test.csv as sentence embeddings.

    python scripts/submit.py --run runs/12.8b --file test.csv --out submission.csv
    python scripts/submit.py --run runs/12.8b --file test.csv --out submission.csv --embedder models/distiluse

Columns id, vec_0 .. vec_511, one row per question, in the order of test.csv. Needs the optional sentence-transformers
(pip install -e '.[submission]'). --answers also keeps the answers themselves. After Ctrl-C, the answers so far are kept
and the same command continues.
"""

import argparse
from pathlib import Path

from llm_qa import files
from llm_qa.console import ArgumentParser, UserError, positive_int, run_script, say
from llm_qa.data.text import LINE_BREAKS
from llm_qa.evaluation.metrics.embedding import (
    COMPETITION_DIMENSIONS,
    COMPETITION_EMBEDDER,
    write_submission,
)
from llm_qa.evaluation.predict.batches import delete_partial_results
from llm_qa.evaluation.predict.run_data import line_breaks_of_run
from llm_qa.inference.question_files import (
    NOT_TRAINED,
    check_csv_name,
    note_double_questions,
    read_questions,
    write_answers,
)
from llm_qa.inference.settings import CANDIDATES_HELP, DECODER_HELP, DECODERS, MAX_NEW_TOKENS_HELP, named_settings
from llm_qa.language import tr
from llm_qa.models.embedder import embed, load_embedder


def parse_arguments() -> argparse.Namespace:
    """The flags; UserError where they contradict each other."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--file", type=Path, required=True, help="CSV of questions (id, 질문)")
    parser.add_argument("--question-column", help="its question column, where it has another name")
    parser.add_argument("--id-column", help="its id column (default: id or 번호, else the row's number)")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="default: submission.csv")
    parser.add_argument("--answers", type=Path, help="CSV to keep the answers in")
    parser.add_argument(
        "--embedder",
        default=COMPETITION_EMBEDDER,
        metavar="MODEL",
        help=tr(
            "a sentence-transformers hub id or folder, which also chooses among --candidates (default: {model})",
            model=COMPETITION_EMBEDDER,
        ),
    )
    parser.add_argument("--batch-size", type=positive_int, default=16, help="questions answered at once")
    parser.add_argument("--max-new-tokens", type=positive_int, help=MAX_NEW_TOKENS_HELP)
    parser.add_argument(
        "--sampling", default="greedy", choices=("greedy", "original"), help="original: as the original notebooks did"
    )
    parser.add_argument("--candidates", type=positive_int, default=1, metavar="N", help=CANDIDATES_HELP)
    parser.add_argument("--decoder", default="auto", choices=DECODERS, help=DECODER_HELP)
    options = parser.parse_args()
    for flag in ("out", "answers"):
        path = getattr(options, flag)
        if path:
            check_csv_name(path, f"--{flag}")
        if path and path.resolve() == options.file.resolve():
            raise UserError(
                tr("--{flag} {path} would overwrite the questions: name another file.", flag=flag, path=path)
            )
    if options.answers and options.answers.resolve() == options.out.resolve():
        raise UserError(tr("--answers and --out are both {out}: name two files.", out=options.out))
    if options.run:
        files.check_run(options.run)
    return options


def main() -> int:
    """Phases: questions, embedder, answers, vectors."""
    options = parse_arguments()
    columns = {"question_column": options.question_column, "id_column": options.id_column}
    questions = read_questions(options.file, **columns, tidy=LINE_BREAKS[line_breaks_of_run(options.run)])
    embedder = load_embedder(options.embedder)
    chosen = {"candidates": options.candidates, "embedder": options.embedder}
    settings = named_settings(options.sampling, options.max_new_tokens, run=options.run, **chosen)
    # Imported here, because they take seconds that --help and errors in flags should not wait for.
    from llm_qa.evaluation.predict.asking import answer_file, find_source

    source = find_source(run=options.run, decoder=options.decoder)
    if not source.recipe.join_questions:
        note_double_questions(options.file, questions, NOT_TRAINED)
    asked = [(row.question, row.context) for row in questions]
    part = options.out.with_name(f".{options.out.name}")
    texts = answer_file(source, asked, settings, batch_size=options.batch_size, part=part)
    if options.answers:
        write_answers(options.answers, questions, texts)
    if empty := sum(not text for text in texts):
        say(
            tr(
                "warning: {empty:,} of {count:,} answers are empty and are embedded as such",
                empty=empty,
                count=len(texts),
            )
        )
    vectors = embed(embedder, texts)
    if vectors.shape[1] != COMPETITION_DIMENSIONS:
        say(
            tr(
                "warning: --embedder has {dimensions} dimensions, the competition's {wanted}",
                dimensions=vectors.shape[1],
                wanted=COMPETITION_DIMENSIONS,
            )
        )
    write_submission(options.out, [row.id for row in questions], vectors)
    delete_partial_results(part)
    say(
        tr(
            "{count:,} answers of {dimensions} dimensions written to {out}",
            count=len(texts),
            dimensions=vectors.shape[1],
            out=options.out,
        )
    )
    return 0


if __name__ == "__main__":
    run_script(main)
