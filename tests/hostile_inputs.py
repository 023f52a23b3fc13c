"""Hostile files, recipes and flags, each made from a random generator alone: the same seed, the same input."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
import zipfile
from itertools import pairwise

import openpyxl

from llm_qa.config.allowed_training_arguments import training_argument_types
from llm_qa.config.recipe import RECIPE_FIELDS

SIGNS = [
    *("\0", "\x1b[2J", "\u202e", "\u200f", "\ufeff", "\ufffd", "\ud800", "\udfff\ud83d", "\u2028", "\x85", "\x0b"),
    *('"', '""', '","', "'", ",", ";", "\t", "\n", "\r", "\r\n", "=cmd|' /C calc'!A0", "@SUM(1)", "<script>x</script>"),
    *("{", "}", "[", "]", "\\", "\\ud800", "&a", "*a", "<<", "!!python/name:os.system", "../../../etc/passwd", "NA"),
    *("가나다", "왜 들뜨나요?", "1.5m", "🏠", "ﷺ", "ᄀ" * 40, "a" + "\u0301\u0316" * 50),
    *("x" * 5000, "9" * 5000, "1e999"),
]
WORDS = ["벽지", "결로", "마루", "곰팡이", "석고보드", "왜", "어떻게", "합니다"]


def words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))


def weird(rng: random.Random) -> str:
    """Korean with up to four hostile pieces in it; seldom a giant."""
    if rng.random() < 0.01:
        return rng.choice(["가", "a\u0301\u0316\u0301", "\u0301\u0316", '"', " ", "ﷺ"]) * rng.choice([70_000, 600_000])
    text = words(rng)
    for _ in range(rng.randint(0, 4)):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(SIGNS) + text[at:]
    return text


def value(rng: random.Random, depth: int = 0):
    """Any JSON value."""
    kind = rng.randint(0, 9 if depth < 4 else 6)
    if kind >= 8:
        return {weird(rng)[:50]: value(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    if kind == 7:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return [None, True, 0, -1, 10**400, float("nan"), weird(rng)][kind] if kind < 6 else weird(rng)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a few places overwritten."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randint(0, len(changed))
        sign = rng.choice(SIGNS).encode(errors="surrogatepass")
        changed[at : at + rng.randint(0, 4)] = rng.choice([sign, rng.randbytes(3), b""])
    return bytes(changed)


def as_utf8(rng: random.Random, text: str) -> bytes:
    """In UTF-8; what has no form there (a lone surrogate) seldom as the bytes that break a file."""
    return text.encode(errors="surrogatepass" if rng.random() < 0.05 else "replace")


def encoded(rng: random.Random, text: str) -> bytes:
    rare = ["utf-16-le", "utf-32", "euc_jp", "latin-1"]
    name = rng.choice([*["utf-8", "utf-8-sig", "cp949", "utf-16"] * 4, *rare])
    data = as_utf8(rng, text) if name == "utf-8" else text.encode(name, "replace")
    return data[: rng.randint(0, len(data))] if rng.random() < 0.1 else data


def table(rng: random.Random, rows: list[list[str]]) -> str:
    buffer = io.StringIO(newline="")
    header = rng.choice([["질문", "답변"], ["id", "질문_1", "질문_2", "category", "답변_1"], ["Q", "A", "context"]])
    if rng.random() < 0.1:
        header = [weird(rng) for _ in header]
    ends = rng.choice(["\n", "\r\n", "\r"])
    writer = csv.writer(buffer, delimiter=rng.choice(",,,\t;"), lineterminator=ends)
    writer.writerow(header)
    for number, row in enumerate(rows):
        writer.writerow([*row, *[f"{words(rng)} {number}" for _ in header]][: len(header)])
    return buffer.getvalue()


def weird_cells(rng):
    rows = []
    for i in range(rng.randint(0, 40)):
        rows.append([f"{weird(rng) if rng.random() < 0.1 else words(rng)} {i}" for _ in range(3)])
    return encoded(rng, table(rng, rows)), None


def damaged_table(rng):
    rows = [[words(rng) + str(i)] for i in range(rng.randint(3, 60))]
    return damaged(rng, encoded(rng, table(rng, rows))), None


def quotes(rng):
    line = "".join(rng.choices('",a\n;\r "', k=rng.randint(1, 12)))
    good = "".join(f"{i}?,{i}\n" for i in range(30))
    text = f"질문,답변\n{good}" + rng.choice(["", '"', 'x,"']) + line * rng.choice([1, 100, 30_000])
    return text.encode(), None


def ragged(rng):
    lines = ["질문,답변", *(f"{i}?,{i}" for i in range(20))]
    for _ in range(rng.randint(1, 10)):
        lines.append(",".join([words(rng)] * rng.choice([0, 1, 2, 3, 50])))
    if rng.random() < 0.15:
        lines.insert(rng.randint(0, len(lines)), rng.choice([",", "a,", '"",']) * 1_000_000)
    return "\n".join(lines).encode(), None


def alike(rng):
    name, answer = rng.choice(["T", "", "=1"]), words(rng)
    count = rng.choice([10, 20_000])
    rows = [f"{name},{i}번 {words(rng)}?,{answer if rng.random() < 0.001 else i}" for i in range(count)]
    return ("id,질문,답변\n" + "\n".join(rows)).encode(), count


def json_lines(rng):
    lines = []
    for i in range(rng.randint(1, 40)):
        record = {"id": i, "category": "c", "questions": [f"{words(rng)} {i}?"], "answers": [f"{words(rng)} {i}"]}
        for _ in range(rng.randint(0, 2)):
            record[rng.choice([*record, "context", "question", "answer", "data"])] = value(rng)
        if rng.random() < 0.05:
            record = value(rng)
        lines.append(json.dumps(record, ensure_ascii=rng.random() < 0.5))
    if rng.random() < 0.2:
        lines.append('{"id":' * rng.choice([100, 990, 100_000]) + "1" + "}" * 100)
    # A first line of its own makes it JSONL for certain, so that every line counts as a row.
    lines += [f'{{"question": "{i}?", "answer": "{i}"}}' for i in range(20)]
    lines.insert(0, '{"id": "first", "question": "처음?", "answer": "네."}')
    return as_utf8(rng, "\n".join(lines)), len(lines)


def korquad(rng):
    rows, articles = 0, []
    for i in range(rng.randint(1, 5)):
        paragraphs = []
        for j in range(rng.randint(1, 4)):
            questions = [
                {"id": k, "question": f"{weird(rng)} {i}{j}{k}?", "answers": [{"text": f"{k} {words(rng)}"}]}
                for k in range(rng.randint(1, 4))
            ]
            paragraph = {"context": weird(rng), "qas": questions}
            for _ in range(rng.randint(0, 1)):
                part = rng.choice([paragraph, *questions])
                part[rng.choice(list(part))] = value(rng)
            rows += len(paragraph["qas"]) if isinstance(paragraph["qas"], list) else 1
            paragraphs.append(paragraph)
        articles.append({"paragraphs": paragraphs})
    for broken in (3, None, {"title": "t"}, {"paragraphs": "x"})[: rng.randint(0, 4)]:
        articles.append(broken)
        rows += 1
    text = json.dumps({"data": articles}, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    return as_utf8(rng, text), rows


def nested(rng):
    sign = rng.choice(["[", '{"a":', '{"data":[', "[{", '{"question":['])
    return (sign * rng.choice([10, 900, 1100, 200_000])).encode(), None


def bomb(rng):
    inside = b"0" * rng.choice([1000, 30_000_000])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", inside[:1000])
    small = [bz2.compress(inside[:1000]), lzma.compress(inside[:1000]), packed.getvalue()]
    data = rng.choice([gzip.compress(inside, 1), *small])
    return rng.choice([data, data[: len(data) // 2], "질문,답변\n".encode() + data]), None


def workbook(rng):
    """A workbook with weird cells and merged areas; a part of it is sometimes damaged and packed again."""
    book = openpyxl.Workbook()
    book.active.append(rng.choice([["질문", "답변", "분류"], ["제목"], ["Q", "A"]]))
    book.active.append(["질문", "답변", "분류"])
    for i in range(rng.randint(1, 30)):
        cells = [f"{weird(rng) if rng.random() < 0.1 else words(rng)} {i}"[:30_000] for _ in range(3)]
        book.active.append([re.sub("[\0-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]", "", cell) for cell in cells])
    for _ in range(rng.randint(0, 2)):
        first = rng.randint(1, 20)
        book.active.merge_cells(f"C{first}:C{first + rng.randint(1, 9)}")
    packed = io.BytesIO()
    book.save(packed)
    if rng.random() < 0.5:
        return packed.getvalue(), None
    with zipfile.ZipFile(packed) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice(sorted(parts))
    parts[chosen] = damaged(rng, parts[chosen])
    again = io.BytesIO()
    with zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return again.getvalue(), None


def chats(rng):
    """JSON lines of conversations, some of whose parts are anything."""
    lines = []
    for i in range(rng.randint(20, 40)):
        turns = [{"role": rng.choice(["system", "user"]), "content": words(rng)} for _ in range(rng.randint(0, 2))]
        turns += [
            {"role": "user", "content": f"{words(rng)} {i}"},
            {"role": "assistant", "content": f"{i} {weird(rng)}"},
        ]
        if rng.random() < 0.2:
            turns[rng.randrange(len(turns))][rng.choice(["role", "content"])] = value(rng)
        lines.append({"messages": value(rng) if rng.random() < 0.1 else turns})
    return as_utf8(rng, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)), len(lines)


def noise(rng):
    parts = [b"", b" \n", b"\xef\xbb\xbf", b"\xff\xfe", b"\0" * 5000, "질문,답변".encode(), b"<html>"]
    parts.append(rng.randbytes(3000))
    return b"".join(rng.choices(parts, k=rng.randint(1, 3))), None


def recipe_values(rng) -> dict:
    known = [*RECIPE_FIELDS, *training_argument_types()]
    names = [rng.choice(known) if rng.random() < 0.9 else weird(rng) for _ in range(rng.randint(1, 3))]
    return {name: rng.choice([value(rng), 1, "1e-4", True, 0.5, "no"]) for name in names}


def recipe_text(rng) -> str:
    kind = rng.randint(0, 12)
    lines = ["seed: 1", "lora_targets: [dense]", "lr_scheduler_kwargs: {a: 1}", "learning_rate: 5e-5", "model: 가"]
    if rng.random() < 0.5:
        lines += [f"{key}: {json.dumps(item)}" for key, item in recipe_values(rng).items()]
    if kind == 0:
        lines += rng.choices(lines, k=2)
    elif kind == 1:
        lines = ["a: &a [x, x]", *(f"{b}: &{b} [*{a}, *{a}, *{a}]" for a, b in pairwise("abcdefghijklm"))]
    elif kind == 2:
        lines.append("x: " + rng.choice(["[", "{a: ", "- ", "? ", "!!set {", "- - "]) * rng.choice([5, 50, 15_000]))
    elif kind == 3:
        digits = rng.choice(["1", "9", "1:"]) * rng.choice([10, 30_000])
        lines[0] = rng.choice(["seed: 0x", "seed: ", "seed: 1:", "seed: 0b"]) + digits
    elif kind == 4:
        tags = ["binary =", "timestamp x", "python/object/apply:os.abort []", "omap [1]", "int x"]
        lines.append("a: !!" + rng.choice(tags))
    elif kind == 5:
        lines = [f"k{i}: {i}" for i in range(rng.choice([10, 6000]))]
    elif kind == 6:
        lines = [weird(rng) for _ in range(rng.randint(1, 9))]
    elif kind == 7:
        lines.append("# " + "가" * rng.choice([10, 100_000, 3_000_000]))
    return "\n".join(lines)


def recipe_flags_of(rng) -> list[str]:
    flags = [f"--{key.replace('_', '-')}" for key in recipe_values(rng)]
    return [part for flag in flags for part in rng.choice([[flag], [flag, weird(rng)], [f"{flag}={weird(rng)}"]])]


FILES = [weird_cells, damaged_table, quotes, ragged, alike, json_lines, korquad, nested, bomb, workbook, chats, noise]
