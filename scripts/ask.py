"""Ask a tuned model: one question, a file of questions, or a conversation at the prompt.

    python scripts/ask.py --run runs/tiny "벽지가 들뜨는 이유는 무엇인가요?"
    python scripts/ask.py --run runs/tiny --file test.csv --out answers.csv
    python scripts/ask.py --run runs/tiny
    python scripts/ask.py --model EleutherAI/polyglot-ko-1.3b "..."     a plain model, no run

After Ctrl-C with --file, the answers so far are kept and the same command continues.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from llm_qa import files
from llm_qa.console import ArgumentParser, UserError, positive_int, run_script, say
from llm_qa.data.plain_prompt import Context, Messages
from llm_qa.data.text import LINE_BREAKS
from llm_qa.evaluation.predict.batches import delete_partial_results
from llm_qa.evaluation.predict.run_data import line_breaks_of_run
from llm_qa.inference.question_files import (
    NOT_TRAINED,
    check_csv_name,
    note_double_questions,
    read_question,
    read_questions,
    write_answers,
)
from llm_qa.inference.settings import (
    CANDIDATES_HELP,
    DECODER_HELP,
    DECODERS,
    MAX_NEW_TOKENS_HELP,
    GenerationSettings,
    named_settings,
)
from llm_qa.language import later, tr

Named = Callable[[str, Context], list[str]]  # of a question and its context, the references in it


def parse_arguments() -> argparse.Namespace:
    """The flags; UserError where they contradict each other."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", help="the question (without it, questions are read from a prompt)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run folder made by train.py")
    source.add_argument("--model", help="a plain model: a hub id or a folder")
    parser.add_argument("--base-precision", default="16bit", help="of --model: nf4, 16bit, bf16, fp16 or fp32")
    parser.add_argument(
        "--context", default="", help="a passage that the question is about (in a --file: where its row has none)"
    )
    parser.add_argument("--file", type=Path, help="CSV of questions (id, 질문, and where there is one 맥락)")
    parser.add_argument("--question-column", help="the question column of --file, where it has another name")
    parser.add_argument("--id-column", help="the id column of --file (default: id or 번호, else the row's number)")
    parser.add_argument("--out", type=Path, help="CSV to write the answers of --file to")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="questions of --file answered at once")
    parser.add_argument("--max-new-tokens", type=positive_int, help=MAX_NEW_TOKENS_HELP)
    parser.add_argument(
        "--sampling", default="greedy", choices=("greedy", "original"), help="original: as the original notebooks did"
    )
    parser.add_argument("--candidates", type=positive_int, default=1, metavar="N", help=CANDIDATES_HELP)
    parser.add_argument("--decoder", default="auto", choices=DECODERS, help=DECODER_HELP)
    options = parser.parse_args()
    if bool(options.file) != bool(options.out):
        raise UserError(tr("--file and --out go together: a CSV of questions in, a CSV of answers out."))
    if options.file and options.question:
        raise UserError(tr("Give a question or --file, not both."))
    if columns := [name for name in ("question_column", "id_column") if getattr(options, name) and not options.file]:
        raise UserError(
            tr("--{flag} names a column of a --file: name one, or leave it out.", flag=columns[0].replace("_", "-"))
        )
    if options.out:
        check_csv_name(options.out, "--out")
    if options.out and options.out.resolve() == options.file.resolve():
        raise UserError(tr("--out {out} would overwrite the questions: name another file.", out=options.out))
    if options.run:
        files.check_run(options.run)
    return options


def stream(
    model, tokenizer, question: str, context: Context, settings: GenerationSettings, decoder, named: Named
) -> str:
    """Print an answer as it is generated, by a static decoder or, without one, by transformers; returns its text.

    `named` gives the names of a question's references in its context, which are printed in a line after the answer.

    Of several candidates the one that is kept is printed at once.

    UserError where the question does not fit into the model's context (`fit_questions`).
    """
    from llm_qa.data.prompts import encode_prompts
    from llm_qa.inference.fitting import fit_questions
    from llm_qa.inference.generate import generate_answers
    from llm_qa.inference.streaming import stream_tokens, text_pieces
    from llm_qa.models.loading import end_tokens

    fitting = fit_questions(tokenizer, model.config, [(question, context)], settings)
    if settings.candidates > 1:  # which one is kept is known when all are drawn
        (answer,) = generate_answers(model, tokenizer, fitting, settings, decoder=decoder, quiet=True)
        say(answer.text)
        if not answer.stopped:
            say(tr("(cut after {tokens:,} tokens: --max-new-tokens)", tokens=settings.max_new_tokens))
        say_references(named(*fitting[0]))
        return answer.text
    (prompt,) = encode_prompts(tokenizer, fitting)
    last: list[int] = []

    def watched():
        for last[:] in stream_tokens(model, tokenizer, prompt, settings, decoder):
            yield list(last)

    text = ""
    for piece in text_pieces(tokenizer, watched()):
        print(piece, end="", flush=True)
        text += piece
    print()
    if set(end_tokens(model, tokenizer)).isdisjoint(last):
        say(tr("(cut after {tokens:,} tokens: --max-new-tokens)", tokens=settings.max_new_tokens))
    say_references(named(*fitting[0]))
    return text.strip()


def say_references(names: list[str]) -> None:
    """What stood before the question, of a run with retrieval."""
    if names:
        say(tr("(references: {names})", names=", ".join(names)))


HELP = later("""\
/base QUESTION   the answer of the model before training; /base alone: to the last question
/new             forgets the earlier questions and answers, which a model with a chat template is given
/help            these lines
/quit            ends, as Ctrl-D does; Ctrl-C ends an answer
the arrow keys edit the line and bring earlier questions back""")


def converse(
    model,
    tokenizer,
    context_of: Callable[[str, Messages], Context],
    settings: GenerationSettings,
    decoder,
    named: Named,
) -> None:
    """Answer questions typed at the prompt until /quit or the end of input; piped in, also until an empty line.

    A model with a chat template is given the earlier questions and answers that were typed, as many of the last as fit.
    `context_of` gives what stands before a question that has these before it, `named` the names of references in that.
    """
    from llm_qa.data.chat import uses_chat

    typed = sys.stdin.isatty()
    earlier: Messages = ()
    if typed:
        with suppress(ImportError):  # with it, input() edits the line and keeps a history; Windows has none
            import readline  # noqa: F401
    ending = tr("/quit ends, /help lists what else" if typed else "an empty line ends")
    say(tr("type a question in Korean; {ending}, Ctrl-C ends an answer", ending=ending))
    last = ""
    while True:
        try:
            question = read_question(input("질문> "), may_be_empty=True)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except (UnicodeDecodeError, UserError) as error:
            say(tr("{error} Type it again.", error=error))
            continue
        command = question.partition(" ")[0] if typed and question.startswith("/") else ""
        if command == "/quit" or not (question or typed):
            return
        if command == "/new":
            earlier, last = (), ""
            continue
        if command == "/base":
            question = question.removeprefix("/base").strip() or last
        elif command:
            unknown = tr("{command} is not known here: /help lists what is.", command=command)
            say(tr(HELP) if command == "/help" else unknown)
            continue
        if not question:
            continue
        last = question
        try:
            if command == "/base":
                before = earlier[:-2] if earlier and question == earlier[-2][1] else earlier
                with base_of(model):
                    stream(model, tokenizer, question, context_of(question, before), settings, None, named)
                continue
            answer = stream(model, tokenizer, question, context_of(question, earlier), settings, decoder, named)
            if typed and uses_chat(tokenizer) and answer:
                earlier = (*earlier, ("user", question), ("assistant", answer))
        except UserError as error:
            say(tr("{error} Type another.", error=error))
        except KeyboardInterrupt:
            print()


def base_of(model) -> AbstractContextManager:
    """Within it, `model` is the base of its adapter; UserError for one without. A static decoder does not notice."""
    if not hasattr(model, "disable_adapter"):
        raise UserError(tr("/base switches LoRA off, and this model has none: ask its base by --model."))
    return model.disable_adapter()


def main() -> int:
    """Phases: questions, model, answers."""
    options = parse_arguments()
    tidy = LINE_BREAKS[line_breaks_of_run(options.run) if options.run else "keep"]
    columns = {"question_column": options.question_column, "id_column": options.id_column}
    questions = read_questions(options.file, **columns, tidy=tidy) if options.file else []
    context = read_question(options.context, "The --context", may_be_empty=True, tidy=tidy)
    question = read_question(options.question) if options.question is not None else None
    settings = named_settings(options.sampling, options.max_new_tokens, run=options.run, candidates=options.candidates)
    whose = {"run": options.run, "model": options.model, "base_precision": options.base_precision}
    # Imported here, because they take seconds that --help and errors in flags should not wait for.
    from llm_qa.evaluation.predict.asking import answer_file, find_source

    source = find_source(**whose, decoder=options.decoder)

    if options.file:
        if options.run and not source.recipe.join_questions:
            note_double_questions(options.file, questions, NOT_TRAINED)
        asked = [(row.question, row.context or context) for row in questions]
        part = options.out.with_name(f".{options.out.name}")
        how = {"batch_size": options.batch_size, "part": part}
        answers = answer_file(source, asked, settings, **how)
        write_answers(options.out, questions, answers)
        delete_partial_results(part)
        say(tr("{count:,} answers written to {path}", count=len(answers), path=options.out))
        return 0
    if question:  # a question that is too long is refused before the weights are read
        ((question, given),) = source.fit([(question, context)], settings)
    model, tokenizer, decoder = source.load_with_decoder(settings.candidates)
    if question:
        stream(model, tokenizer, question, given, settings, decoder, source.references_in)
    else:
        passage: Messages = (("passage", context),) if context else ()

        def context_of(asked: str, earlier: Messages) -> Context:
            return source.with_references(asked, (*passage, *earlier) if earlier else context)

        converse(model, tokenizer, context_of, settings, decoder, source.references_in)
    return 0


if __name__ == "__main__":
    run_script(main)
