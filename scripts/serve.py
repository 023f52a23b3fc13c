"""Serve a tuned model to programs that speak OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    python scripts/serve.py --run runs/tiny
    python scripts/serve.py --run runs/tiny --host 0.0.0.0 --api-key SECRET     for other machines

It needs FastAPI and uvicorn (make install-serve). Ctrl-C or SIGTERM: it takes no more requests, answers those that it
took, and ends.
"""

import argparse
import importlib.util
import os
from pathlib import Path

from llm_qa import files
from llm_qa.console import ArgumentParser, UserError, positive_int, run_script, say
from llm_qa.inference.settings import DECODER_HELP, DECODERS, MAX_NEW_TOKENS_HELP, named_settings
from llm_qa.language import tr
from llm_qa.serving.address import LOCAL_HOSTS, bound_socket, check_port, run_server, url

KEY_VARIABLE = "LLM_QA_API_KEY"


def parse_arguments() -> argparse.Namespace:
    """The flags; UserError where they contradict each other or packages are missing."""
    parser = ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run folder made by train.py")
    source.add_argument("--model", help="a plain model: a hub id or a folder")
    parser.add_argument("--base-precision", default="16bit", help="of --model: nf4, 16bit, bf16, fp16 or fp32")
    parser.add_argument("--decoder", default="auto", choices=DECODERS, help=DECODER_HELP)
    parser.add_argument("--name", help="the model's name in requests (default: that of the folder)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; any other needs --api-key")
    parser.add_argument("--port", type=positive_int, default=8000, help="port to listen at (8000)")
    parser.add_argument(
        "--api-key",
        help=tr("what clients must send; the variable {variable} is not seen by others", variable=KEY_VARIABLE),
    )
    parser.add_argument("--batch-size", type=positive_int, default=16, help="requests answered at once")
    parser.add_argument("--max-queue", type=positive_int, default=256, help="requests that may wait; more get 429")
    parser.add_argument("--max-new-tokens", type=positive_int, help=MAX_NEW_TOKENS_HELP)
    parser.add_argument("--max-tokens", type=positive_int, help="most that a request may ask for (the model's context)")
    parser.add_argument("--max-body-bytes", type=positive_int, default=2**20, help="larger requests get 413 (1 MiB)")
    options = parser.parse_args()
    options.api_key = options.api_key or os.environ.get(KEY_VARIABLE) or None
    if options.host not in LOCAL_HOSTS and not options.api_key:
        raise UserError(
            tr("--host {host} lets other machines ask: give an --api-key that they must send.", host=options.host)
        )
    if options.api_key and not (options.api_key.isascii() and options.api_key.isprintable()):
        raise UserError(tr("The --api-key goes into an HTTP header: use printable ASCII characters."))
    check_port(options.port)
    if options.run:
        files.check_run(options.run)
    return options


def main() -> int:
    """Phases: flags, model, server."""
    options = parse_arguments()
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(
            tr(
                "Serving needs {packages}: make install-serve, or pip install -e '.[serve]'.",
                packages=" and ".join(missing),
            )
        )
    bound = bound_socket(options.host, options.port)
    settings = named_settings("greedy", options.max_new_tokens, run=options.run)
    # Imported here, because they take seconds that --help and errors in flags should not wait for.
    from llm_qa.evaluation.predict.asking import find_source
    from llm_qa.inference.generate import context_length
    from llm_qa.serving.app import Limits, build_app
    from llm_qa.serving.engine import Engine

    whose = {"run": options.run, "model": options.model, "base_precision": options.base_precision}
    source = find_source(**whose, decoder=options.decoder)
    context = context_length(source.config)
    name = options.name or Path(options.run or options.model).resolve().name
    model, tokenizer, decoder = source.load_with_decoder(options.batch_size)
    engine = Engine(model, tokenizer, decoder, rows=options.batch_size, most_waiting=options.max_queue)
    most = min(context, options.max_tokens or context)
    limits = Limits(options.max_body_bytes, context, most, min(most, settings.max_new_tokens))
    app = build_app(engine, tokenizer, name, limits, options.api_key, source.with_references)

    where = url(options.host, options.port)
    say(
        tr(
            "serving {name!r} at {where}/v1, {rows:,} requests at once; Ctrl-C ends",
            name=name,
            where=where,
            rows=engine.rows,
        )
    )
    run_server(app, bound, http="h11")
    say(tr("every request that was taken is answered"))
    return 0


if __name__ == "__main__":
    run_script(main)
