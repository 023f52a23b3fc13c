"""Prompts in a model's own chat format: its tokenizer's chat template decides, in training as in every later use.

`choose_prompt` puts the template that a run is trained with into its tokenizer, which carries it from then on: into the
run's folder, to asking and evaluating, into exports and servers. The text between the template's marks is tokenised
with them at once, as a server does it, and still cannot spell a special token (`tokenization.py`).
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Literal

import jinja2

from llm_qa.console import UserError
from llm_qa.data.chat_template import PLAIN_CHAT_TEMPLATE
from llm_qa.data.plain_prompt import Context, Documents, Questions
from llm_qa.data.text import normalize, normalize_lines
from llm_qa.data.tokenization import encode_texts, special_names

PLACE = (
    "\ue000{}\ue001"  # of a message's text in a rendered template; characters for private use, which no template has
)
PLACES = re.compile(PLACE.format(r"(\d+)"))
PLAIN_INSTEAD = "set --prompt plain to train with this project's own format"


def uses_chat(tokenizer) -> bool:
    """Whether the tokenizer carries a chat template other than the plain prompt's."""
    return getattr(tokenizer, "chat_template", None) not in (None, PLAIN_CHAT_TEMPLATE)


def choose_prompt(tokenizer, prompt: str, system_prompt: str | None = None) -> Literal["plain", "chat"]:
    """Give the tokenizer the template that `prompt` (auto, plain or chat) asks for; returns 'plain' or 'chat'.

    auto is the tokenizer's own template where it has one. `system_prompt` is sent where a conversation has no system
    message, and models that can think before they answer are told not to: both become part of the template. Answers end
    with the token by which the template ends a turn, which becomes the tokenizer's eos. UserError where the template
    cannot do what is asked.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several by name
        own = own.get("default")
    if prompt == "chat" and not own:
        raise UserError(
            "--prompt chat needs a tokenizer with a chat template, and the model's has none: set it to plain."
        )
    if prompt == "plain" or not own or own == PLAIN_CHAT_TEMPLATE:
        if system_prompt:
            raise UserError(
                "--system-prompt is part of a chat template, which the plain prompt does not have: leave it out, or "
                "choose a model with a chat template and --prompt chat."
            )
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        return "plain"
    settings = _settings(own, system_prompt)
    tokenizer.chat_template = own if own.startswith(settings) else settings + own  # as a run has saved it
    ending = _skeleton(tokenizer, tokenizer.chat_template, ("user",), True)[1]
    found = re.search(r"\0(\d+)\0", ending)
    if found:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(found[1]))
    return "chat"


def _settings(template: str, system_prompt: str | None) -> str:
    """The beginning of a template that sets a system message, and that no thinking comes before the answer."""
    settings = "{%- set enable_thinking = false -%}" if "enable_thinking" in template else ""
    if system_prompt:
        text = json.dumps(normalize_lines(system_prompt), ensure_ascii=False)
        settings += (
            "{%- if messages[0]['role'] not in ['system', 'developer'] -%}{%- set messages = "
            f"[{{'role': 'system', 'content': {text}}}] + messages -%}}{{%- endif -%}}"
        )
    return settings


def encode_chat_prompts(tokenizer, questions: Questions) -> list[list[int]]:
    """Token ids of the prompts of (question, context) pairs, equal to those of `apply_chat_template`."""
    return encode_texts(tokenizer, [_fill(tokenizer, question, context)[0] for question, context in questions])


def show_chat_prompt(tokenizer, question: str, context: Context = "") -> str:
    """The text of a prompt with the template's special tokens as they are spelled."""
    text = _fill(tokenizer, question, context)[0]
    for name, within in special_names(tokenizer).items():
        text = text.replace(within, name)
    return text


def encode_chat_documents(tokenizer, triples: Documents) -> list[tuple[list[int], int]]:
    """(token ids, tokens of the prompt) of (question, answer, context) triples; each ends with the tokenizer's eos.

    Prompt and answer are tokenised at once where the prompt's tokens are the beginning of the whole's, else apart.
    """
    prompts, endings = [], []
    for question, answer, context in triples:
        prompt, ending = _fill(tokenizer, question, context, answer)
        prompts.append(prompt)
        endings.append(ending)
    wholes = encode_texts(tokenizer, [prompt + ending for prompt, ending in zip(prompts, endings, strict=True)])
    apart = encode_texts(tokenizer, endings)
    documents = []
    for asked, whole, answered in zip(encode_texts(tokenizer, prompts), wholes, apart, strict=True):
        ids = whole if whole[: len(asked)] == asked else [*asked, *answered]
        eos = [] if ids[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
        documents.append(([*ids, *eos], len(asked)))
    return documents


def _fill(tokenizer, question: str, context: Context, answer: str | None = None) -> tuple[str, str]:
    """(prompt, answer and end of turn) as texts in which the template's special tokens have their `special_names`."""
    before = [("passage", context)] if isinstance(context, str) else context
    passages = [text for text in (normalize_lines(text) for role, text in before if role == "passage") if text]
    messages = [(role, normalize_lines(text)) for role, text in before if role != "passage"]
    messages.append(("user", "\n\n".join([*passages, normalize(question)])))
    roles = tuple(role for role, _ in messages)
    prompt, ending = _skeleton(tokenizer, tokenizer.chat_template, roles, answer is not None)
    texts = [text for _, text in messages]
    if answer is not None:
        texts.append(normalize_lines(answer))
    # In one go, so that a text that spells a place stays text.
    prompt, ending = (PLACES.sub(lambda place: texts[int(place[1])], part) for part in (prompt, ending))
    return prompt, ending


@lru_cache(maxsize=256)
def _skeleton(tokenizer, template: str, roles: tuple[str, ...], answered: bool) -> tuple[str, str]:
    """The rendered template with a place for each message's text: (prompt, answer's place and end of turn).

    Special tokens have their `special_names`. What the template writes after the end of the answer's turn is left out.
    UserError where it leaves out a message, or renders the prompt otherwise once it is answered.
    """
    messages = [{"role": role, "content": PLACE.format(number)} for number, role in enumerate(roles)]
    answer = {"role": "assistant", "content": PLACE.format(len(roles))}
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*messages, answer], tokenize=False) if answered else prompt
    except jinja2.TemplateError as error:
        said = ", ".join(roles)
        raise UserError(f"The model's chat template refuses messages of {said} ({error}): {PLAIN_INSTEAD}.") from error
    lost = [message["role"] for message in messages if prompt.count(message["content"]) != 1]
    if lost or (answered and whole.count(answer["content"]) != 1):
        raise UserError(
            f"The model's chat template leaves out the text of a message ({[*lost, 'assistant'][0]}): {PLAIN_INSTEAD}."
        )
    if not whole.startswith(prompt):
        raise UserError(
            "The model's chat template renders a question otherwise once it is answered, so that what is trained would "
            f"not be what is asked: {PLAIN_INSTEAD}."
        )
    names = special_names(tokenizer)
    if names:
        marks = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
        prompt, ending = (marks.sub(lambda mark: names[mark[0]], part) for part in (prompt, whole[len(prompt) :]))
    else:
        ending = whole[len(prompt) :]
    before, place, after = ending.partition(answer["content"])
    end_of_turn = re.match(r"[^\0]*\0\d+\0", after)
    return prompt, before + place + (end_of_turn[0] if end_of_turn else "")
