"""The validation split that trials are judged by: its size in label tokens and in characters of answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError, progress
from llm_qa.data.packing import TOKENIZE_AT_ONCE
from llm_qa.training.data_sets import RunRecords
from llm_qa.training.model_setup import base_source, load_tokenizer_for


@dataclass(frozen=True)
class ValidationText:
    """What a validation loss is spread over: the answers' tokens, their ends counted, and their characters."""

    label_tokens: int
    characters: int

    def bits_per_character(self, loss: float) -> float:
        """A loss in nats per label token as bits per character; the ends of answers count, as evaluate.py's do not."""
        return loss * self.label_tokens / math.log(2) / self.characters


def validation_text(records: RunRecords, recipe: Recipe) -> ValidationText | None:
    """Count the validation answers as train.py tokenises them; None where the loss is on the questions too.

    UserError for data without validation records.
    """
    if not records.validation:
        raise UserError(
            f"{records.folder} has no validation records, which settings are judged by: prepare it with --validation."
        )
    if recipe.loss_on != "answer":
        return None
    tokenizer, _ = load_tokenizer_for(recipe, base_source(recipe))
    bar = progress(records.validation, total=len(records.validation), what="counting validation", unit="records")
    triples = ((record, question, answer) for record in bar for question, answer in record.pairs())
    tokens = characters = 0
    while part := list(islice(triples, TOKENIZE_AT_ONCE)):
        for (_, _, answer), document in zip(part, records.encode(tokenizer, part, recipe.max_length), strict=True):
            if len(document.input_ids) <= recipe.max_length:  # longer ones are not validated on
                tokens += len(document.input_ids) - document.prompt_length
                characters += len(answer)
    if not characters:
        raise UserError(f"No validation answer fits max_length {recipe.max_length} tokens: raise --max-length.")
    return ValidationText(tokens, characters)
