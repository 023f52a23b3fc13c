"""Train the model that `model: embedded` is: a small GPT-NeoX and its tokenizer, on Korean text of your choice.

    python scripts/pretrain_embedded.py corpus/ --out pretrained --repeat docs=2 reviews=3
    python scripts/pretrain_embedded.py corpus/ --out pretrained --ship

The corpus is a folder of UTF-8 files (.txt or .txt.xz), a paragraph a line. The tokenizer and the token ids are kept in
--out and used again. The model is a plain language model: it is shown no question with its answer. --ship writes it, in
8 bits, where the package keeps it, with the checksum that is verified on first use. One H100 takes some minutes.
"""

from __future__ import annotations

import argparse
import lzma
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llm_qa import files
from llm_qa.console import ArgumentParser, UserError, positive_int, run_script, say

if TYPE_CHECKING:
    import numpy

HELD_OUT = 400  # documents, of which the validation loss is told
LINES_A_DOCUMENT = 6  # at most; consecutive lines of a file, which are mostly of one text
LEAST_HANGUL = 0.3  # share of Hangul syllables in a line; less is code, a table or another language
HANGUL, LETTERS_OF_LAUGHTER = re.compile(r"[가-힣]"), re.compile(r"[ㄱ-ㅎㅏ-ㅣ]{2,}|(.)\1{3,}")
BATCH, LENGTH = 128, 512  # rows of an update, tokens of a row
BETAS, WEIGHT_DECAY, DROPOUT, WARM_UP = (0.9, 0.95), 0.1, 0.1, 0.05


def parse_arguments() -> argparse.Namespace:
    """The script's flags."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("corpus", type=Path, help="a folder of .txt or .txt.xz files, a paragraph a line")
    parser.add_argument("--out", type=Path, default=Path("pretrained"), help="folder of tokens, checkpoints and result")
    parser.add_argument("--repeat", nargs="+", default=[], metavar="FILE=TIMES", help="how often an epoch has a file")
    parser.add_argument("--vocabulary", type=positive_int, default=8_000, help="tokens")
    parser.add_argument("--width", type=positive_int, default=320, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=positive_int, default=8, help="decoder layers")
    parser.add_argument("--steps", type=positive_int, default=3_000, help="updates")
    parser.add_argument("--seconds", type=positive_int, help="end the learning-rate schedule after so many seconds")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the highest of the schedule")
    parser.add_argument("--seed", type=int, default=0, help="seed of start, order and dropout")
    parser.add_argument("--ship", action="store_true", help="write the result into the package, in 8 bits")
    options = parser.parse_args()
    if not (options.out / "tokens").is_dir():
        files.check_exists([options.corpus], "the first argument")
    return options


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file that are Korean prose, normalised."""
    from llm_qa.data.text import normalize

    data = path.read_bytes()
    for line in (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8").splitlines():
        text = normalize(line)
        if len(HANGUL.findall(text)) >= LEAST_HANGUL * len(text) and not LETTERS_OF_LAUGHTER.search(text):
            yield text


def documents_of(path: Path, choose: random.Random) -> list[str]:
    """Texts of one to LINES_A_DOCUMENT consecutive lines."""
    lines, documents = list(lines_of(path)), []
    while lines:
        count = choose.randint(1, LINES_A_DOCUMENT)
        documents.append("\n".join(lines[:count]))
        lines = lines[count:]
    return documents


def tokenise(options: argparse.Namespace) -> Path:
    """Folder of the tokenizer and of <file>.npy (uint16 token ids, documents ended by eos); made where it is not."""
    import numpy

    from llm_qa.data.tokenization import encode_texts
    from llm_qa.models.embedded import build_tokenizer

    folder = options.out / "tokens"
    if (folder / "tokenizer.json").is_file():
        say(f"tokens: from {folder}")
        return folder
    paths = sorted(path for path in options.corpus.glob("*") if path.name.endswith((".txt", ".txt.xz")))
    if not paths:
        raise UserError(f"{options.corpus} is no folder with .txt or .txt.xz files: name one as the first argument.")
    choose = random.Random(options.seed)
    texts = {path.name.partition(".")[0]: documents_of(path, choose) for path in paths}
    everything = [text for documents in texts.values() for text in documents]
    say(f"tokens: {sum(map(len, everything)):,} characters in {len(everything):,} documents; training the tokenizer")
    tokenizer = build_tokenizer(everything, options.vocabulary, digits_alone=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in texts.items():
        choose.shuffle(documents)
        ids = [[*ids, tokenizer.eos_token_id] for ids in encode_texts(tokenizer, [f" {text}" for text in documents])]
        for part, chosen in (("", ids[: -HELD_OUT or None]), ("-held-out", ids[-HELD_OUT:])):
            numpy.save(folder / f"{name}{part}.npy", numpy.concatenate([numpy.array(i, numpy.uint16) for i in chosen]))
        say(f"tokens: {name} {sum(map(len, ids)):,}")
    tokenizer.save_pretrained(folder)
    return folder


def repetitions(options: argparse.Namespace, names: list[str]) -> dict[str, int]:
    """How often an epoch has each file."""
    repeat = dict.fromkeys(names, 1)
    for word in options.repeat:
        name, equals, times = word.partition("=")
        if name not in repeat or not equals or not times.isdigit():
            raise UserError(f"--repeat {word!r} is not FILE=TIMES, with a file of the corpus: {', '.join(names)}.")
        repeat[name] = int(times)
    return repeat


def epochs(streams: dict[str, numpy.ndarray], repeat: dict[str, int], seed: int) -> Iterator[numpy.ndarray]:
    """Batches (BATCH, LENGTH + 1) of shuffled rows, epoch after epoch; each epoch cuts the streams elsewhere."""
    import numpy

    generator = numpy.random.default_rng(seed)
    while True:
        rows = []
        for name, stream in streams.items():
            for _ in range(repeat[name]):
                begin = int(generator.integers(LENGTH))
                count = (len(stream) - begin - 1) // LENGTH
                starts = begin + LENGTH * numpy.arange(count)
                rows.append(stream[starts[:, None] + numpy.arange(LENGTH + 1)])
        epoch = numpy.concatenate(rows)
        generator.shuffle(epoch)
        for begin in range(0, len(epoch) - BATCH + 1, BATCH):
            yield epoch[begin : begin + BATCH]


def pretrain(options: argparse.Namespace, folder: Path):
    """The trained model in fp32 on the CPU, and its validation loss by file, in nats a token."""
    import numpy
    import torch

    from llm_qa.models.embedded import new_model
    from llm_qa.models.loading import load_tokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = sorted(path.stem for path in folder.glob("*.npy") if not path.stem.endswith("-held-out"))
    streams = {name: numpy.load(folder / f"{name}.npy") for name in names}
    held_out = {name: numpy.load(folder / f"{name}-held-out.npy") for name in names}
    repeat = repetitions(options, names)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(options.seed)
    model = new_model(len(tokenizer), tokenizer.eos_token_id, options.width, options.layers).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"pretraining {parameters:,} parameters on {device}, an epoch: {repeat}")
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=BETAS, fused=device == "cuda")
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.p = DROPOUT
    run = torch.compile(model) if device == "cuda" else model

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = run(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    model.train()
    began, step, share = time.monotonic(), 0, 0.0
    for batch in epochs(streams, repeat, options.seed):
        if step == 1:
            began = time.monotonic()  # compiling is over
        share = step / options.steps
        if options.seconds and step:
            share = max(share, (time.monotonic() - began) / options.seconds)
        if share >= 1:
            break
        rate = min(1.0, share / WARM_UP + 1e-3) * (0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate
        loss = loss_of(torch.from_numpy(batch.astype(numpy.int64)).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0 or step == 1:
            seconds = time.monotonic() - began
            say(f"step {step}  {share:.0%}  loss {loss.item():.3f}  {seconds:.0f} s")
            if not math.isfinite(loss.item()):
                raise RuntimeError(f"The loss is {loss.item()}: lower --learning-rate.")
    model.eval()
    losses = {}
    for name, stream in held_out.items():
        count = max(1, (len(stream) - 1) // LENGTH)
        rows = [torch.from_numpy(stream[LENGTH * i : LENGTH * (i + 1) + 1].astype(numpy.int64)) for i in range(count)]
        with torch.no_grad():
            losses[name] = sum(loss_of(row[None].to(device)).item() for row in rows if len(row) > 1) / count
    say(f"{step} updates of {BATCH * LENGTH:,} tokens; validation losses {losses}")
    for module in dropouts:
        module.p = 0.0
    return model.cpu().float(), tokenizer, losses


def main() -> int:
    """Tokenise, pretrain, save; ship where that is asked for."""
    options = parse_arguments()
    from llm_qa.models.embedded import ship

    folder = tokenise(options)
    model, tokenizer, losses = pretrain(options, folder)
    result = options.out / "model"
    model.save_pretrained(result)
    tokenizer.save_pretrained(result)
    files.write_json(options.out / "losses.json", losses)
    say(f"{result} is saved")
    if options.ship:
        say(f"shipped: {ship(model, tokenizer)}")
    return 0


if __name__ == "__main__":
    run_script(main)
