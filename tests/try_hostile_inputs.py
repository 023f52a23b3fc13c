"""Try hostile inputs in a process of bounded memory, each with bounded time.

    python tests/try_hostile_inputs.py FIRST COUNT     the inputs FIRST, FIRST + 1 ...; prints one JSON object

An input is made by its number alone, so what failed can be repeated: `python tests/try_hostile_inputs.py 1234 1`.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["RANK"] = "1"  # no bars, no lines

from hostile_inputs import FILES, WORDS, as_utf8, damaged, recipe_flags_of, recipe_text, recipe_values, weird

from llm_qa import files
from llm_qa.config.recipe import load_recipe, make_recipe, recipe_flags
from llm_qa.console import UserError
from llm_qa.data.preparation import prepare
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.readers.rows import ColumnNames
from llm_qa.data.splits import load_split
from llm_qa.data.text import invalid_reason
from llm_qa.inference.question_files import read_question, read_questions

SECONDS = 10  # of the processor, so that a busy machine does not count
BYTES = 1024**3  # above what the process holds before the first input


def options_of(rng: random.Random, folder: Path) -> PreparationOptions:
    """Mostly the defaults, sometimes every option."""
    if rng.random() < 0.6:
        return PreparationOptions()
    stopwords = folder / "stopwords.txt"
    stopwords.write_bytes(as_utf8(rng, " ".join([*rng.sample(WORDS, 3), weird(rng)])))
    return PreparationOptions(
        columns=rng.choice([ColumnNames()] * 4 + [ColumnNames(("질문",)), ColumnNames(("Q",), ("Q",), weird(rng))]),
        cleaning=rng.choice(["none", "original"]),
        stopwords=rng.choice([None, *[str(stopwords)] * 8, "/dev/zero"]),
        stopwords_scope=rng.choice([None, None, "questions"]),
        validation=rng.choice([0, 0.1, 0.5]),
        test=rng.choice([0, 0.1, 0.49]),
        group_by=rng.choice(["both", "questions"]),
        max_characters=rng.choice([1, 100, 4096, 4096, 10**9]),
    )


def try_file(rng: random.Random, folder: Path, data: bytes, rows: int | None) -> None:
    """prepare_data's function; where it accepts the file, every row and every text is accounted for."""
    path, out = folder / rng.choice(["data.csv", "data.jsonl", "..csv", "=data.json", "\u202e데이터"]), folder / "out"
    path.write_bytes(data)
    manifest = prepare([path], out, options_of(rng, folder))
    rejected = files.read_jsonl(out / files.REJECTED)
    splits = [load_split(out, split, may_be_empty=True) for split in files.SPLITS]
    assert manifest["rows_read"] == manifest["kept"] + manifest["rejected"] > 0
    assert (sum(map(len, splits)), len(rejected)) == (
        manifest["kept"] - manifest["merged"],
        manifest["rejected"],
    )
    assert [account["kept"] for account in manifest["inputs"]] == [manifest["kept"]]
    assert rows is None or manifest["rows_read"] == rows, f"{manifest['rows_read']} rows read of {rows}"
    assert all(row["line"] >= 1 and row["reason"] for row in rejected)
    records = [record for split in splits for record in split]
    assert len({record.id for record in records}) == len(records)
    assert not any(
        invalid_reason(text) for r in records for text in (r.id, r.category, r.context, *r.questions, *r.answers)
    )


def targets(number: int, folder: Path) -> dict:
    """What is tried with an input: name -> function."""
    rng = random.Random(number)
    if number % 3 == 0:
        text, flags, typed = recipe_text(rng), recipe_flags_of(rng), weird(rng)
        recipe = folder / "recipe.yaml"
        data = as_utf8(rng, text)
        recipe.write_bytes(damaged(rng, data) if rng.random() < 0.2 else data)
        return {
            "load_recipe": lambda: load_recipe(recipe),
            "recipe_flags": lambda: make_recipe(recipe_flags(flags)),
            "make_recipe": lambda: make_recipe(recipe_values(rng)),
            "read_question": lambda: read_question(typed),
        }
    make = rng.choice(FILES)
    data, rows = make(rng)
    if rng.random() < 0.1:
        data, rows = damaged(rng, data), None
    questions = folder / "questions.csv"
    questions.write_bytes(data)
    return {
        f"prepare {make.__name__}": lambda: try_file(rng, folder, data, rows),
        f"read_questions {make.__name__}": lambda: read_questions(questions),
        f"load_recipe {make.__name__}": lambda: load_recipe(questions),
    }


def out_of_time(*_):
    raise TimeoutError(f"more than {SECONDS} s")


def attempt(function) -> tuple[str, str]:
    """("accepted", "") or ("refused", the sentence), else ("failed", the traceback)."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        function()
    except UserError as error:
        sentence = str(error)
        if "\n" in sentence or not sentence.endswith((".", "!")) or len(sentence) > 4000:
            return "failed", f"not one sentence: {sentence[:2000]!r}"
        return "refused", sentence
    except Exception:
        return "failed", "".join(traceback.format_exc())[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "accepted", ""


def memory_limit() -> int:
    """Let this process grow by BYTES from here on; returns its peak so far in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(first: int, count: int) -> dict:
    """Try the inputs; counts by outcome, the slowest, the growth of the peak memory in bytes, the failures."""
    signal.signal(signal.SIGPROF, out_of_time)
    before = memory_limit()
    outcomes, failures, slowest, kinds = Counter(), [], (0.0, "", 0), Counter()
    for number in range(first, first + count):
        folder = Path(tempfile.mkdtemp(prefix="hostile"))
        try:
            for name, function in targets(number, folder).items():
                begin = time.process_time()
                outcome, text = attempt(function)
                seconds = round(time.process_time() - begin, 2)
                slowest = max(slowest, (seconds, name, number))
                if seconds > SECONDS and outcome != "failed":
                    outcome, text = "failed", f"took {seconds} s"
                outcomes[outcome] += 1
                kinds[f"{name} {outcome}"] += 1
                if outcome == "failed":
                    failures.append({"input": number, "target": name, "what": text})
        finally:
            shutil.rmtree(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"inputs": count, **outcomes, "slowest": slowest, "grown_bytes": grown, "kinds": kinds, "failures": failures}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2])), ensure_ascii=False))
