"""Tokenises texts as plain text, also where they spell a special token.

A tokenizer turns "<|endoftext|>" or "</s>" inside a text into the token of that name, so a model would be trained to
end an answer there. `split_special_tokens=True` of transformers is not enough: it leaves added tokens that are not
declared special ("<think>"), and a Unigram (SentencePiece) vocabulary has "</s>" among its ordinary pieces, with the
best score of all. So texts are tokenised by a copy of the tokenizer in which those tokens have names that no text can
contain.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from tokenizers import Tokenizer

from llm_qa.console import UserError

# An added token that is spelled like markup is treated as a control token even if it is not declared special. Runs of
# spaces (GPT-NeoX, Phi) and words added to the vocabulary are text and stay tokens.
MARKUP = re.compile(r"[<>\[\]{}|]")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # byte fallback for a character outside the vocabulary


def encode_texts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens (no bos or eos, none spelled in a text).

    `tokenizer` is one of transformers with a tokenizers backend. Training, scoring and generation all use this
    function.
    """
    return [encoding.ids for encoding in plain_text_tokenizer(tokenizer).encode_batch_fast(texts)]


@lru_cache(maxsize=4)
def special_names(tokenizer) -> dict[str, str]:
    """Every token that no text may spell -> its name in `plain_text_tokenizer`, which has a NUL character.

    Raises UserError for a tokenizer without a tokenizers backend.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"The tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, so special tokens that a text spells "
            "cannot be kept apart from the text: set --model to a checkpoint that has one."
        )
    return {
        token["content"]: f"\0{token['id']}\0"
        for token in json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"]
        if (token["special"] or MARKUP.search(token["content"])) and not BYTE.fullmatch(token["content"])
    }


@lru_cache(maxsize=4)
def plain_text_tokenizer(tokenizer) -> Tokenizer:
    """A copy of the tokenizer's backend with the same ids, in which no text can spell a special token.

    Each such token is renamed, in the added tokens and in the model's vocabulary, to its `special_names`; readers
    refuse a NUL character in data. Raises UserError as `special_names`.
    """
    renamed = special_names(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):  # BPE, WordPiece, WordLevel: token -> id
        model["vocab"] = {renamed.get(name, name): number for name, number in model["vocab"].items()}
    else:  # Unigram: [token, score] in the order of ids
        model["vocab"] = [[renamed.get(name, name), score] for name, score in model["vocab"]]
    if "merges" in model:  # of BPE: drop those that produce a renamed token
        parts = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
        model["merges"] = [pair for pair in parts if not renamed.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    state["post_processor"] = state["truncation"] = state["padding"] = None  # no special tokens, truncation or padding
    return Tokenizer.from_str(json.dumps(state))
