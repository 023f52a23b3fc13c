"""A page in the browser to ask a tuned model, to see its base's answer beside, and to mark answers as good or bad.

    python scripts/chat.py --run runs/tiny
    python scripts/chat.py --run runs/tiny --lang ko --port 8080
    python scripts/chat.py --run runs/tiny --host 0.0.0.0 --password SECRET     for other machines

Marks, and better answers that are written, are appended to runs/tiny/marks.jsonl (--marks), which prepare_data.py reads
as data. It needs Gradio (make chat installs it). Ctrl-C ends.
"""

import argparse
import importlib.util
import os
from pathlib import Path

from llm_qa import files
from llm_qa.console import ArgumentParser, UserError, positive_int, run_script, say
from llm_qa.data.marks import check_marks_file
from llm_qa.inference.settings import DECODER_HELP, DECODERS, MAX_NEW_TOKENS_HELP, named_settings
from llm_qa.language import language, tr
from llm_qa.serving.address import LOCAL_HOSTS, bound_socket, check_port, run_server, url

PASSWORD_VARIABLE = "LLM_QA_PASSWORD"


def parse_arguments() -> argparse.Namespace:
    """The flags; UserError where they contradict each other."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--no-base", action="store_true", help="only the tuned model's answer")
    parser.add_argument("--data", type=Path, help="the prepared data of the run, where it was moved")
    parser.add_argument("--nearest", type=positive_int, default=3, help="training questions shown beside (3)")
    parser.add_argument("--marks", type=Path, help="file that marks are appended to (default: marks.jsonl in the run)")
    parser.add_argument("--decoder", default="auto", choices=DECODERS, help=DECODER_HELP)
    parser.add_argument("--max-new-tokens", type=positive_int, help=MAX_NEW_TOKENS_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; any other needs --password")
    parser.add_argument("--port", type=positive_int, default=7860, help="port to listen at (7860)")
    parser.add_argument(
        "--password",
        help=tr("what users must type; the variable {variable} is not seen by others", variable=PASSWORD_VARIABLE),
    )
    options = parser.parse_args()
    options.password = options.password or os.environ.get(PASSWORD_VARIABLE) or None
    if options.host not in LOCAL_HOSTS and not options.password:
        raise UserError(
            tr("--host {host} lets other machines ask: give a --password that they must type.", host=options.host)
        )
    check_port(options.port)
    files.check_run(options.run)
    options.marks = options.marks or options.run / files.MARKS
    return options


def main() -> int:
    """Phases: flags, model, page."""
    options = parse_arguments()
    check_marks_file(options.marks)
    if options.data and not files.is_prepared(options.data):
        raise UserError(
            tr("--data {data} is not prepared data (prepare_data.py makes it): leave it out.", data=options.data)
        )
    if importlib.util.find_spec("gradio") is None:
        raise UserError(tr("The page needs gradio: make chat installs it, or pip install -e '.[chat]'."))
    bound = bound_socket(options.host, options.port)
    settings = named_settings("greedy", options.max_new_tokens, run=options.run)
    # Gradio and the hub's client read these when they are imported; neither is to call anyone.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # Imported here, because they take seconds that --help and errors in flags should not wait for.
    from llm_qa.evaluation.predict.asking import find_source
    from llm_qa.models.loading import load_run
    from llm_qa.serving.answerer import Answerer
    from llm_qa.serving.chat_page import Chat, build_app, known_questions

    source = find_source(run=options.run, decoder=options.decoder)
    training = known_questions(options.run, options.data)
    model, tokenizer, decoder = source.load_with_decoder(1)
    base = None
    if source.recipe.method == "full" and not options.no_base:  # a run with LoRA has its base inside
        base, _ = load_run(options.run, base=True)
    with_base, context_of = not options.no_base, source.with_references
    answerer = Answerer(model, tokenizer, settings, decoder, base, with_base=with_base, context_of=context_of)
    name = options.run.resolve().name
    chat = Chat(answerer, training, options.marks, model=name, language=language(), nearest=options.nearest)
    app = build_app(chat, options.password)
    say(tr("the page of {name!r} is at {url}; Ctrl-C ends", name=name, url=url(options.host, options.port)))
    run_server(app, bound, timeout_graceful_shutdown=3)
    return 0


if __name__ == "__main__":
    run_script(main)
