"""The train, validation and test splits: which records go where, and reading a split of prepared data from the disk."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.groups import group_records
from llm_qa.data.records import QARecord
from llm_qa.data.text import leakage_key


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
