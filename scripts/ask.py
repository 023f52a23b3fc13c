"""Ask a tuned model: one question, a file of questions, or a conversation at the prompt.

python scripts/ask.py --run runs/tiny "벽지가 들뜨는 이유는 무엇인가요?"
python scripts/ask.py --run runs/tiny --file test.csv --out answers.csv
python scripts/ask.py --run runs/tiny
python scripts/ask.py --model EleutherAI/polyglot-ko-1.3b "..."     a plain model, no run
"""

import argparse
from pathlib import Path

import torch

from llm_qa.config import make_recipe
from llm_qa.console import UserError, run_script, say
from llm_qa.data.prompts import encode_prompts
from llm_qa.data.questions import read_question, read_questions, write_answers
from llm_qa.data.text import normalize_lines
from llm_qa.evaluation.generation import (
    DECODERS,
    GenerationSettings,
    check_decoder,
    generate_answers,
    named_settings,
    static_decoder,
)
from llm_qa.models.loading import base_of_run, load_base, load_run, load_tokenizer, run_recipe
from llm_qa.models.quantization import gpu_capability, resolve_precision
from llm_qa.models.shapes import model_config


def parse_arguments() -> argparse.Namespace:
    """The flags; contradictions end here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", help="the question; left out, a prompt opens")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run folder made by train.py")
    source.add_argument("--model", help="a plain model: a hub id or a folder")
    parser.add_argument("--base-precision", default="16bit", help="of --model: nf4, 16bit, bf16, fp16 or fp32")
    parser.add_argument("--context", default="", help="a passage that the question is about")
    parser.add_argument("--file", type=Path, help="CSV of questions (id, 질문)")
    parser.add_argument("--out", type=Path, help="CSV to write the answers of --file to")
    parser.add_argument("--batch-size", type=int, default=16, help="questions of --file answered at once")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer in tokens (default 128; original: 300)")
    parser.add_argument(
        "--sampling", default="greedy", choices=("greedy", "original"), help="original: as the original notebooks did"
    )
    parser.add_argument(
        "--decoder", default="plain", choices=DECODERS, help="of --file; static: GPT-NeoX, greedy, fixed cache"
    )
    options = parser.parse_args()
    if bool(options.file) != bool(options.out):
        raise UserError("--file and --out go together: a CSV of questions in, a CSV of answers out.")
    if options.decoder != "plain" and not options.file:
        raise UserError(f"--decoder {options.decoder} answers the questions of a --file: name one, or leave it out.")
    if options.file and options.question:
        raise UserError("Give a question or --file, not both.")
    if options.out and options.out.resolve() == options.file.resolve():
        raise UserError(f"--out {options.out} would overwrite the questions: name another file.")
    for flag in ("batch_size", "max_new_tokens"):
        if (value := getattr(options, flag)) is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} is {value} and must be at least 1.")
    return options


def load(options: argparse.Namespace):
    """Model and tokenizer of --run or --model."""
    if options.run:
        return load_run(options.run)
    recipe = make_recipe({"model": options.model, "base_precision": options.base_precision}, source="--model")
    model = load_base(options.model, resolve_precision(recipe, gpu_capability()))
    return model.eval(), load_tokenizer(options.model)


@torch.inference_mode()
def stream(model, tokenizer, question: str, context: str, settings: GenerationSettings) -> None:
    """Print an answer as it is generated; a syllable is shown once all of its bytes are there."""
    from transformers import TextStreamer

    prompt = torch.tensor(encode_prompts(tokenizer, [(question, context)]))
    prompt = prompt.to(model.get_input_embeddings().weight.device)
    model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **settings.arguments(),
    )


def converse(model, tokenizer, context: str, settings: GenerationSettings) -> None:
    """Answer questions typed at the prompt until an empty line or the end of input."""
    say("type a question in Korean; an empty line ends")
    while True:
        try:
            question = read_question(input("질문> "), may_be_empty=True)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except (UnicodeDecodeError, UserError) as error:
            say(f"{error} Type it again.")
            continue
        if not question:
            return
        stream(model, tokenizer, question, context, settings)


def main() -> int:
    """Phases: questions, model, answers."""
    options = parse_arguments()
    settings = named_settings(options.sampling, options.max_new_tokens)
    questions = read_questions(options.file) if options.file else []
    context = read_question(options.context, "The --context", may_be_empty=True, tidy=normalize_lines)
    question = read_question(options.question) if options.question is not None else None
    if options.decoder != "plain":
        source = base_of_run(options.run, run_recipe(options.run)) if options.run else options.model
        check_decoder(options.decoder, settings, model_config(source))

    model, tokenizer = load(options)
    if options.file:
        asked = [(question, context) for _, question in questions]
        size = options.batch_size
        decoder = static_decoder(model, tokenizer, asked, settings, size) if options.decoder == "static" else None
        answers = generate_answers(model, tokenizer, asked, settings, batch_size=size, decoder=decoder)
        write_answers(options.out, questions, [answer.text for answer in answers])
        say(f"{len(answers):,} answers written to {options.out}")
    elif question:
        stream(model, tokenizer, question, context, settings)
    else:
        converse(model, tokenizer, context, settings)
    return 0


if __name__ == "__main__":
    run_script(main)
