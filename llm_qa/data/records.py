"""Records (one piece of knowledge with several questions and several right answers), and splitting them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.groups import group_records
from llm_qa.data.plain_prompt import Context, Messages
from llm_qa.data.text import leakage_key

ROLES = ("system", "user", "assistant", "passage")
EARLIER = "earlier_messages"  # not `messages`, by which a file says that it holds whole conversations


def passage_of(context: str, system: str) -> str:
    """A context without the system message that it starts with."""
    return context.removeprefix(system).strip()


@dataclass(frozen=True)
class QARecord:
    """Questions that ask the same thing, and answers that are right for each of them.

    The context is what the answer is based on: a passage, or the start of a conversation. `system` is a system message
    at its start, an instruction that many conversations share; `messages` are the context of a conversation one by one,
    which a chat template renders as such. `conversation` is shared by all records of one conversation, where several of
    its answers are learned: they belong to one group.
    """

    id: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    category: str = ""
    context: str = ""
    system: str = ""
    messages: Messages = ()
    conversation: str = ""

    @property
    def given(self) -> Context:
        """What stands before the question: the messages of a conversation, a system message and a passage, or that."""
        if self.messages or not self.system:
            return self.messages or self.context
        return (("system", self.system), *([("passage", self.passage)] if self.passage else []))

    @property
    def passage(self) -> str:
        """The context without the system message; records that share it belong to one group."""
        return passage_of(self.context, self.system)

    def pairs(self) -> list[tuple[str, str]]:
        """Every question with every answer, in order."""
        return [(question, answer) for question in self.questions for answer in self.answers]

    def to_json(self) -> dict[str, Any]:
        """The record as a line of a .jsonl file."""
        value = {
            "id": self.id,
            "category": self.category,
            "questions": list(self.questions),
            "answers": list(self.answers),
        }
        value |= {key: getattr(self, key) for key in ("context", "system", "conversation") if getattr(self, key)}
        return value | ({EARLIER: messages_json(self.messages)} if self.messages else {})

    @classmethod
    def from_json(cls, value: Any) -> QARecord:
        """The inverse of to_json; ValueError says what is wrong."""
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        for key in ("questions", "answers"):
            items = value.get(key)
            if not isinstance(items, list) or not items or not all(isinstance(i, str) and i.strip() for i in items):
                raise ValueError(f"{key} is not a list of texts")
        for key in ("id", "category", "context", "system", "conversation"):
            if not isinstance(value.get(key, ""), str):
                raise ValueError(f"{key} is not text")
        return cls(
            value.get("id", ""),
            tuple(value["questions"]),
            tuple(value["answers"]),
            value.get("category", ""),
            value.get("context", ""),
            value.get("system", ""),
            messages_from_json(value.get(EARLIER, [])),
            value.get("conversation", ""),
        )


def messages_json(messages: Messages) -> list[dict[str, str]]:
    """Messages as chat formats write them."""
    return [{"role": role, "content": text} for role, text in messages]


def messages_from_json(value: Any) -> Messages:
    """The inverse of messages_json; ValueError where it is not a list of messages."""
    try:
        messages = tuple((turn["role"], turn["content"]) for turn in value)
    except (TypeError, KeyError):
        raise ValueError(f"{EARLIER} is not a list of objects with role and content") from None
    if not all(isinstance(text, str) and role in ROLES for role, text in messages):
        raise ValueError(f"{EARLIER} holds a role that is not of {', '.join(ROLES)}, or a content that is not text")
    return messages


def split_records(
    records: list[QARecord], *, validation: float = 0.1, test: float = 0.1, seed: int = 42, by_answers: bool = True
) -> dict[str, list[QARecord]]:
    """Split whole groups into train, validation and test: seeded, stratified by category, in the order of `records`.

    Within each category the shuffled groups go one by one to the split that lacks most of its share, so that small
    categories are spread too. Raises UserError when a single group is most of the data, or when there are too few
    groups for the splits.
    """
    shares = {"train": 1.0 - validation - test, "validation": validation, "test": test}
    wanted = [name for name, share in shares.items() if share > 0]
    groups = group_records(records, by_answers=by_answers)
    largest = max(groups, key=len)
    if len(wanted) > 1 and (len(groups) < len(wanted) or len(largest) > max(len(records) / 2, 1)):
        shared = "a question, an answer or a passage" if by_answers else "a question or a passage"
        what = (
            f"{len(largest):,} of {len(records):,} records share {shared} with each other (for example "
            f"{largest[0].answers[0][:40]!r}), so too few can be held out"
            if len(largest) > 1
            else f"{len(records)} records are too few"
        )
        raise UserError(f"{what} for {' + '.join(wanted)}: {_remedy(records, by_answers, len(wanted))}.")
    by_category: dict[str, list[list[QARecord]]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: min(record.id for record in group)):
        by_category[Counter(record.category for record in group).most_common(1)[0][0]].append(group)
    rng = random.Random(seed)
    total: Counter[str] = Counter()
    home: dict[str, str] = {}
    dealt = 0
    for category in sorted(by_category):
        members = by_category[category]
        rng.shuffle(members)
        for group in sorted(members, key=len, reverse=True):  # small groups last, to balance the splits
            dealt += len(group)
            split = max(wanted, key=lambda name: (shares[name] * dealt - total[name], shares[name]))
            total[split] += len(group)
            home.update({record.id: split for record in group})
    for name in wanted:
        if not total[name]:  # few records: move the smallest group of the largest split
            fullest = total.most_common(1)[0][0]
            group = min((g for g in groups if home[g[0].id] == fullest), key=len)
            home.update({record.id: name for record in group})
            total.update({name: len(group), fullest: -len(group)})
    return {name: [record for record in records if home[record.id] == name] for name in files.SPLITS}


def _remedy(records: list[QARecord], by_answers: bool, wanted: int) -> str:
    """What helps where records cannot be split; --group-by questions is named only where it would help."""
    nothing_held_out = "set --validation 0 and --test 0 to hold nothing out"
    if by_answers:
        groups = group_records(records, by_answers=False)
        if len(groups) >= wanted and max(map(len, groups)) <= max(len(records) / 2, 1):
            return f"set --group-by questions if answers like that are meant to repeat, or {nothing_held_out}"
    return f"give more data, or {nothing_held_out}"


def crossing_texts(splits: dict[str, list[QARecord]]) -> dict[str, int]:
    """How many question texts and answer texts are in more than one split after normalisation.

    Questions about different passages are different questions.
    """
    counts = {}
    for kind in ("questions", "answers"):
        seen: dict[tuple[str, str], set[str]] = defaultdict(set)
        for split, records in splits.items():
            for record in records:
                about = leakage_key(record.passage) if record.passage and kind == "questions" else ""
                for text in getattr(record, kind):
                    seen[leakage_key(text), about].add(split)
        counts[kind] = sum(len(where) > 1 for where in seen.values())
    return counts


@dataclass(frozen=True)
class Split:
    """The records of a file, read from the disk at each iteration, with only one in memory at a time.

    Raises UserError where a line is not a record.
    """

    path: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[QARecord]:
        for number, value in enumerate(files.stream_jsonl(self.path), 1):
            try:
                record = QARecord.from_json(value)
            except ValueError as error:
                raise UserError(f"{self.path}, record {number}: {error}.") from None
            yield record


def open_split(data_dir: str | Path, split: str, *, may_be_empty: bool = False) -> Split:
    """One split of prepared data, checked against the manifest's sha256.

    Raises UserError for a folder that is not prepared data, a changed file or an empty split.
    """
    data_dir, path = Path(data_dir), files.split_file(data_dir, split)
    if not files.is_prepared(data_dir):
        raise UserError(f"{data_dir} is not prepared data (it has no {files.MANIFEST}): make it with prepare_data.py.")
    expected = files.read_json(data_dir / files.MANIFEST).get("sha256", {}).get(path.name)
    if not path.is_file() or files.sha256_file(path) != expected:
        raise UserError(f"{path} is not what prepare_data.py wrote (see {files.MANIFEST}): prepare the data again.")
    with open(path, "rb") as file:
        count = sum(not line.isspace() for line in file)
    if not count and not may_be_empty:
        raise UserError(f"{path} has no records: prepare the data with --{split} above 0.")
    return Split(path, count)


def load_split(data_dir: str | Path, split: str, *, may_be_empty: bool = False) -> list[QARecord]:
    """All records of open_split, in memory."""
    return list(open_split(data_dir, split, may_be_empty=may_be_empty))
