"""Holds out wordings in place of facts: one phrasing of each training record that has several goes to the test split.

Held-out records ask what the model was not taught; held-out phrasings whether it recognises what it was taught in other
words, which is what an FAQ is for. The two are never mixed in one test split.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from llm_qa.console import UserError
from llm_qa.data.records import QARecord
from llm_qa.data.text import leakage_key
from llm_qa.language import later

RECORDS, PHRASINGS = "records", "phrasings"  # what a test split holds out
NEW_WORDINGS = later("trained facts, new wordings")


def split_words(split: str, held_out: str) -> str:
    """'test split', marked where it asks for trained facts in new wordings."""
    return f"{split} split" + (f" ({NEW_WORDINGS})" if held_out == PHRASINGS else "")


def hold_out_phrasings(train: list[QARecord], seed: int) -> tuple[list[QARecord], list[QARecord]]:
    """(training records without the held-out phrasing, test records with it alone), both in the order of `train`.

    A test record has the id and the answers of its training record. A phrasing that is asked twice, by this record or
    another about the same passage, is never held out. Raises UserError where no record has a phrasing to spare.
    """
    asked = Counter(_key(record, question) for record in train for question in record.questions)
    rng = random.Random(seed)
    kept, held = [], []
    for record in train:
        once = [question for question in record.questions if asked[_key(record, question)] == 1]
        if len(record.questions) < 2 or not once:
            kept.append(record)
            continue
        chosen = rng.choice(once)
        kept.append(replace(record, questions=tuple(text for text in record.questions if text != chosen)))
        held.append(replace(record, questions=(chosen,)))
    if not held:
        raise UserError(
            "No record that is trained on is asked in two ways, so --test phrasings has nothing to hold out: write two "
            "or three questions for an answer (columns 질문_1, 질문_2), or hold out a share of the records, like "
            "--test 0.1."
        )
    return kept, held


def _key(record: QARecord, question: str) -> tuple[str, str]:
    return leakage_key(question), leakage_key(record.passage)
