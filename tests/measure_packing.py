"""Growth of reading, tokenising and packing with the number of pairs: seconds, peak memory, bytes on the disk.

    python tests/measure_packing.py FOLDER [PAIRS ...]      default 10^4, 10^5, 10^6 and 10^7 pairs

Prepared data of synthetic records (2 questions x 5 answers, Korean words, documents of about the original's lengths)
is written to FOLDER and removed again; then a process of its own does what scripts/train.py does with it. At 10^7 pairs
FOLDER needs about 4 GB, and $TMPDIR (or /var/tmp) 3 GB for the tokens.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from llm_qa import files
from llm_qa.console import format_table
from llm_qa.data.packing import PackedDataset, tokenize_records
from llm_qa.data.preparation import bundled_file
from llm_qa.data.prompts import encode_prompts
from llm_qa.data.splits import open_split
from llm_qa.models.embedded import build_tokenizer

SIZES = (10**4, 10**5, 10**6, 10**7)
QUESTIONS, ANSWERS = 2, 5  # a record, as in the original's data
MEDIAN_TOKENS, SPREAD, SHORTEST, LONGEST = 64, 0.55, 20, 400  # of a pair there, roughly log-normal
MAX_LENGTH = 512
PACK_LENGTHS = (512, 2048, 8192)
READ = 1000  # packs


def words() -> list[str]:
    """The words of the bundled data, in its order."""
    with open(bundled_file("train.csv"), encoding="utf-8", newline="") as file:
        return " ".join(text for row in csv.reader(file) for text in row[1:]).split()


def write_data(folder: Path, pairs: int) -> None:
    """Prepared data with one split: `pairs` pairs in records of 10, answers as long as a document has room for."""
    stock, tokenizer, random = words(), build_tokenizer(words()), np.random.default_rng(0)
    a_word = sum(map(len, tokenizer([f" {word}" for word in stock])["input_ids"])) / len(stock)
    given = len(encode_prompts(tokenizer, [(" ".join(stock[:2]), "")])[0]) + 1  # a question of two words, and eos
    folder.mkdir(parents=True)
    with open(files.split_file(folder, "train"), "w", encoding="utf-8") as file:
        for number in range(pairs // (QUESTIONS * ANSWERS)):
            lengths = np.exp(random.normal(np.log(MEDIAN_TOKENS), SPREAD, ANSWERS)).clip(SHORTEST, LONGEST)
            counts = np.maximum((lengths - given) / a_word + random.random(ANSWERS), 1).astype(int).tolist()
            begins = random.integers(0, len(stock) - LONGEST, QUESTIONS + ANSWERS).tolist()
            texts = [
                " ".join(stock[begin : begin + count])
                for begin, count in zip(begins, [2] * QUESTIONS + counts, strict=True)
            ]
            record = {"id": f"TRAIN_{number}", "questions": texts[:QUESTIONS], "answers": texts[QUESTIONS:]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    written = files.split_file(folder, "train")
    files.write_json(folder / files.MANIFEST, {"sha256": {written.name: files.sha256_file(written)}})


def memory(field: str) -> int:
    """Bytes of this process: VmHWM, the most that was resident; RssFile, what of now is pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(folder: Path) -> dict:
    """Read, tokenise and pack the split as scripts/train.py does; a lap is (wall, processor) seconds."""
    tokenizer = build_tokenizer(words())
    before = memory("VmHWM")
    clocks = [(time.perf_counter(), time.process_time())]

    def lap() -> tuple[float, float]:
        clocks.append((time.perf_counter(), time.process_time()))
        return tuple(round(now - then, 2) for then, now in zip(*clocks[-2:], strict=True))

    records = open_split(folder, "train")
    opened = lap()
    pairs, too_long = tokenize_records(tokenizer, records, MAX_LENGTH)
    row = {"opened": opened, "tokenized": lap(), "pairs": len(pairs), "too_long": len(too_long)}
    row |= {"median": int(np.median(pairs.lengths)), "longest": int(pairs.lengths.max())}
    for pack_length in PACK_LENGTHS:
        lap()
        packs = PackedDataset(pairs, pack_length, "answer", seed=42)
        row |= {f"packed {pack_length}": lap(), f"full {pack_length}": packs.efficiency}
    row |= {"peak": memory("VmHWM"), "before": before}
    random = np.random.default_rng(0).permutation(len(packs.packs))[:READ].tolist()
    lap()
    for index in random:
        packs[index]
    row |= {"read": lap(), "packs_read": len(random), "mapped": memory("RssFile"), "disk": pairs.tokens.nbytes}
    return row


def main() -> None:
    """One line a size, then the table."""
    folder = Path(sys.argv[1]) / "measured-packing"
    rows = []
    for size in [int(text) for text in sys.argv[2:]] or SIZES:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            began = time.perf_counter()
            write_data(folder, size)
            print(f"{size:,} pairs written in {time.perf_counter() - began:.0f} s", flush=True)
            command = [sys.executable, __file__, "--measure", str(folder)]
            row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(row), flush=True)
        full = [f"{row[f'full {pack_length}']:.2%}" for pack_length in PACK_LENGTHS]
        packed = [f"{row[f'packed {pack_length}'][1]:.2f}" for pack_length in PACK_LENGTHS]
        peak, growth = row["peak"] / 2**20, (row["peak"] - row["before"]) / row["pairs"]
        rows.append(
            [
                f"{size:,}",
                *(f"{row[key][1]:.1f}" for key in ("opened", "tokenized")),
                " / ".join(packed),
                " / ".join(full),
                f"{peak:,.0f} MiB",
                f"{growth:,.0f} B",
                f"{row['disk'] / 2**20:,.0f} MiB",
            ]
        )
    lengths = " / ".join(map(str, PACK_LENGTHS))
    header = ["pairs", "checked", "tokenised", f"packed to {lengths}", "full", "peak", "a pair", "tokens on disk"]
    print(
        f"seconds of the processor, {os.cpu_count()} cores; peak resident memory of the whole process, imports too, "
        "until packs are read: pages of the tokens' file come on top then, as the system has room for them"
    )
    print(format_table(header, rows))


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main()
