"""Write a finished run as a plain model folder for other programs: LoRA merged into the base's 16-bit weights.

    python scripts/export.py --run runs/12.8b
    python scripts/export.py --run runs/12.8b --out exports/mine --dtype bf16 --no-evaluate

    python scripts/export.py --run runs/12.8b --gguf ../llama.cpp

The folder has safetensors weights in files of 2 GiB, config, generation config, tokenizer with its chat template and a
card. Merging reads one tensor after another, so 12.8 billion weights need about 3 GiB of memory. Afterwards the merged
weights answer the run's test questions, so that their scores stand beside the run's. --gguf also makes a file for
llama.cpp and Ollama, of a folder that is there already too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import ArgumentParser, UserError, format_table, run_script, say
from llm_qa.inference.settings import named_settings
from llm_qa.language import tr

DTYPES = ("base", "fp16", "bf16", "fp32")


def parse_arguments() -> argparse.Namespace:
    """The flags; UserError where the run or the place to write is not one."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a run folder made by train.py")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder (default: exports/<run>)")
    parser.add_argument(
        "--dtype", default="base", choices=DTYPES, help="of the numbers (default: those of the base's own checkpoint)"
    )
    parser.add_argument(
        "--evaluate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answer the run's test questions with the merged weights (default; --no-evaluate leaves it out)",
    )
    parser.add_argument(
        "--gguf", type=Path, metavar="LLAMA_CPP", help="a folder of llama.cpp's sources: also make a GGUF file with it"
    )
    parser.add_argument(
        "--gguf-type", default="f16", choices=("f16", "bf16", "q8_0"), help="numbers of the GGUF file (f16)"
    )
    options = parser.parse_args()
    files.check_run(options.run)
    options.out = options.out or Path("exports") / options.run.resolve().name
    if options.out.exists() and not (options.gguf and (options.out / "config.json").is_file()):
        raise UserError(tr("--out {out} is there already: name another folder, or remove it.", out=options.out))
    return options


def main() -> int:
    """Phases: the plain folder, the GGUF file."""
    options = parse_arguments()
    # Imported here, because they take seconds that --help and errors in flags should not wait for.
    from llm_qa.export.gguf import check_llama_cpp, write_gguf
    from llm_qa.models.loading import load_tokenizer, run_recipe

    recipe = run_recipe(options.run)
    if options.gguf:
        check_llama_cpp(options.gguf)
    if options.out.exists():
        say(tr("{out} is there already: only its GGUF file is made", out=options.out))
    else:
        export(options, recipe)
    if options.gguf:
        longest = named_settings("greedy", run=options.run).max_new_tokens
        out = write_gguf(options.out, options.gguf, load_tokenizer(options.out), options.gguf_type, longest)
        size = out.stat().st_size / 2**30
        say(
            tr(
                "{out}: {size:,.2f} GiB for llama.cpp; for Ollama:",
                out=out,
                size=size,
            )
        )
        say(f"ollama create NAME -f {out.parent}/Modelfile", as_is=True)
    return 0


def export(options: argparse.Namespace, recipe: Recipe) -> None:
    """Merge, write, evaluate, complete the card."""
    from llm_qa.export.card import measures, model_card
    from llm_qa.export.model import export_model

    exported = export_model(options.run, options.out, model_card(options.run), dtype=options.dtype)
    if exported.left_out:
        say(
            tr(
                "left out: {count} tensors that no model has, such as {example}",
                count=len(exported.left_out),
                example=exported.left_out[0],
            )
        )
    say(
        tr(
            "{folder}: {gib:,.2f} GiB of weights, written and read back equal",
            folder=exported.folder,
            gib=exported.weight_bytes / 2**30,
        )
    )
    if recipe.retrieval:
        say(
            tr(
                "note: the run was trained with retrieval {retrieval}, so a program that asks this model "
                "must put the nearest of {references} before each question, as scripts/serve.py --run "
                "{run} does",
                retrieval=recipe.retrieval,
                references=files.REFERENCES,
                run=options.run,
            )
        )
    if recipe.method == "full":
        say(tr("its weights are the run's own, so the run's evaluation holds for them"))
    elif options.evaluate:
        evaluate(options.run, options.out)
        files.write_text(options.out / "README.md", model_card(options.run))
        asked, header, rows = measures(options.run)
        say(f"{asked}\n{format_table(header, rows)}")


def evaluate(run: Path, merged: Path) -> None:
    """Answer the run's test questions with the merged weights; UserError where that fails: the export stands."""
    command = [str(Path(__file__).with_name("evaluate.py")), "--run", str(run), "--merged", str(merged)]
    if subprocess.run([sys.executable, *command]).returncode:
        raise UserError(
            tr(
                "{merged} is written and complete, but its test was not: mend what the message "
                "above says and run .venv/bin/python scripts/evaluate.py --run {run} --merged "
                "{merged}, or leave it out by --no-evaluate.",
                merged=merged,
                run=run,
            )
        )


if __name__ == "__main__":
    run_script(main)
