"""A user's own passages: a folder of text and Markdown files, cut at headings and paragraphs (`--documents`).

A run with `retrieval` puts the nearest of them before a question, among the training records. A passage begins with the
headings that it stands under, so that it is found, and understood, by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError, progress
from llm_qa.data.encoding import decode
from llm_qa.data.text import invalid_reason, normalize, normalize_lines

SUFFIXES = (".txt", ".md")
PASSAGE_CHARACTERS = 400  # --passage-characters where it is left out
LEAST_CHARACTERS = 50
HEADING = re.compile(r"(#{1,6})\s+(.*?)[\s#]*$")
FENCE = re.compile(r"\s*(```|~~~)")  # around code, in which # begins a comment
SENTENCE_END = re.compile(r"(?<=[.!?。])\s+|\n")


@dataclass(frozen=True)
class Passage:
    """A piece of a user's document; `source` is the file's path inside the folder."""

    id: str
    source: str
    text: str

    def to_json(self) -> dict[str, str]:
        """A line of documents.jsonl."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any) -> Passage:
        """The inverse of to_json; ValueError says what is wrong."""
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        for key in ("id", "source", "text"):
            if not isinstance(value.get(key), str) or not value[key].strip():
                raise ValueError(f"{key} of a passage is not text")
        return cls(value["id"], value["source"], value["text"])


def document_files(folder: str | Path) -> list[Path]:
    """The text and Markdown files in a folder and those below, sorted; hidden ones are left out.

    Raises UserError for what is no folder, and for one without such files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"--documents {folder} {problem}: name a folder of text or Markdown files (.txt, .md).")
    below = ((path, path.relative_to(folder).parts) for path in folder.rglob("*"))
    found = [path for path, parts in below if path.suffix.lower() in SUFFIXES and not any(p[0] == "." for p in parts)]
    if not found:
        raise UserError(f"--documents {folder} has no text or Markdown file: put files that end in .txt or .md there.")
    return sorted(path for path in found if path.is_file())


def read_documents(folder: str | Path, most: int) -> tuple[list[Passage], list[dict[str, Any]]]:
    """(passages of at most `most` characters, an account of each file for the manifest) of a folder.

    A passage that stands in several places is kept once. Raises UserError as `document_files`, and for a file that is
    not UTF-8, UTF-16 or cp949 text.
    """
    passages: dict[str, Passage] = {}  # by their text
    accounts = []
    for path in progress(document_files(folder), what="reading documents", unit="files"):
        source = normalize(path.relative_to(folder).as_posix())
        text, encoding = decode(path, "plain text")
        if reason := invalid_reason(text):
            raise UserError(f"{path} cannot be used ({reason}): correct it, or take it out of --documents {folder}.")
        before = len(passages)
        for number, piece in enumerate(cut(text, most, headings=path.suffix.lower() == ".md"), 1):
            passages.setdefault(piece, Passage(f"{source}#{number}", source, piece))
        account = {"file": source, "encoding": encoding, "sha256": files.sha256_file(path)}
        accounts.append({**account, "passages": len(passages) - before})
    if not passages:
        raise UserError(f"--documents {folder} holds headings and no text under them: write some.")
    return list(passages.values()), accounts


def load_passages(data_dir: str | Path) -> list[Passage]:
    """The passages of prepared data; none where it was prepared without --documents. UserError for a damaged file."""
    path = Path(data_dir) / files.DOCUMENTS
    if not path.is_file():
        return []
    try:
        return [Passage.from_json(value) for value in files.read_jsonl(path)]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data again.") from None


def cut(text: str, most: int, *, headings: bool) -> Iterator[str]:
    """Passages of at most `most` characters: neighbouring paragraphs of a section, after its headings.

    A paragraph that is longer is cut at lines and ends of sentences, a sentence that is longer between words. NFC, line
    breaks stay. `headings`: lines that begin with # are headings of Markdown.
    """
    for path, paragraphs in sections(normalize_lines(text), headings):
        while len(path) > 1 and len(" > ".join(path)) > most // 2:
            path = path[1:]  # the widest subject goes first
        title = f"{' > '.join(path)[: most // 2]}\n" if path else ""
        room, passage = most - len(title), ""
        for piece in (piece for paragraph in paragraphs for piece in shorter(paragraph, room)):
            if passage and len(passage) + 1 + len(piece) > room:
                yield title + passage
                passage = ""
            passage += f"\n{piece}" if passage else piece
        if passage:
            yield title + passage


def sections(text: str, headings: bool) -> Iterator[tuple[list[str], list[str]]]:
    """(headings from the widest to the nearest, paragraphs under them), in the order of the text."""
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    code = False
    for line in text.split("\n"):
        code ^= bool(headings and FENCE.match(line))
        heading = HEADING.match(line) if headings and not code else None
        if not heading:
            lines.append(line)
            continue
        yield [title for _, title in path], paragraphs_of(lines)
        level, lines = len(heading[1]), []
        path = [(above, title) for above, title in path if above < level] + [(level, heading[2])][: bool(heading[2])]
    yield [title for _, title in path], paragraphs_of(lines)


def paragraphs_of(lines: list[str]) -> list[str]:
    """What empty lines keep apart."""
    return [part.strip("\n") for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]


def shorter(paragraph: str, most: int) -> Iterator[str]:
    """A paragraph in pieces of at most `most` characters."""
    if len(paragraph) <= most:
        yield paragraph
        return
    piece = ""
    for sentence in filter(None, map(str.strip, SENTENCE_END.split(paragraph))):
        for part in words_of(sentence, most):
            if piece and len(piece) + 1 + len(part) > most:
                yield piece
                piece = ""
            piece += f" {part}" if piece else part
    if piece:
        yield piece


def words_of(sentence: str, most: int) -> Iterator[str]:
    """A sentence in pieces of at most `most` characters, cut at a space where there is one."""
    while len(sentence) > most:
        end = sentence.rfind(" ", 1, most + 1)
        end = end if end > 0 else most
        yield sentence[:end].rstrip()
        sentence = sentence[end:].lstrip()
    if sentence:
        yield sentence
