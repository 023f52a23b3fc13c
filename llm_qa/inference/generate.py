"""Generates answers in batches, and computes log-probabilities of reference answers, with training's prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from llm_qa.console import UserError, progress
from llm_qa.data.packing import collate_packs
from llm_qa.data.plain_prompt import Documents, Questions
from llm_qa.data.prompts import encode_documents, encode_prompts
from llm_qa.data.text import normalize_lines
from llm_qa.inference.candidates import closest_to_all
from llm_qa.inference.continuous_batching import generate
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import StaticDecoder
from llm_qa.models.isolation import attention_of
from llm_qa.models.loading import end_tokens


@dataclass(frozen=True)
class Answer:
    """A generated answer: `stopped` is True when the model ended it with eos, False when it reached the token limit.

    `tokens` were generated for it, those of other candidates included.
    """

    text: str
    stopped: bool
    tokens: int


def context_length(config) -> int:
    """The largest number of tokens in a sequence of a model with this config, of its text part where it has several."""
    return int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or 2048)


def room_for_prompts(config, settings: GenerationSettings) -> int:
    """Tokens left for the prompt when the answer is as long as allowed; UserError where there are none."""
    room = context_length(config) - settings.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {settings.max_new_tokens} leaves no room for a question in the model's context of "
            f"{context_length(config)} tokens."
        )
    return room


def fitting_prompts(model, tokenizer, questions: Questions, settings: GenerationSettings) -> list[list[int]]:
    """Token ids of the prompts; ValueError where one is too long (`fit_questions` shortens them before)."""
    room = room_for_prompts(model.config, settings)
    prompts = encode_prompts(tokenizer, questions)
    if (longest := max(map(len, prompts), default=0)) > room:
        raise ValueError(f"A prompt of {longest:,} tokens does not fit into the {room:,} that the model has room for.")
    return prompts


def generate_answers(
    model,
    tokenizer,
    questions: Questions,
    settings: GenerationSettings,
    *,
    batch_size: int = 16,
    decoder: StaticDecoder | None = None,
    quiet: bool = False,
) -> list[Answer]:
    """Answer (question, context) pairs, in their order, by transformers' generate, or by `decoder` with its own rows.

    transformers' batches are sorted by length, so that they have little padding, and padded on the left. ValueError for
    a prompt that leaves no room for the answer in the model's context. With several candidates each question is
    answered as often, in the same batches, and one answer of each is kept.
    """
    prompts = fitting_prompts(model, tokenizer, questions, settings)
    prompts = [prompt for prompt in prompts for _ in range(settings.candidates)]
    order, ends = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True), end_tokens(model, tokenizer)
    answers: dict[int, Answer] = {}
    torch.manual_seed(settings.seed)
    unit = "questions" if settings.candidates == 1 else "candidates"
    with progress(total=len(prompts), what="answering", unit=unit, quiet=quiet) as bar:
        if decoder:
            rows = generate(decoder, prompts, settings, answered=bar.update)
            return _kept([to_answer(tokenizer, row, ends) for row in rows], settings)
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            with torch.inference_mode():
                rows = generate_batch(model, tokenizer, [prompts[i] for i in part], settings)
            for i, row in zip(part, rows, strict=True):
                answers[i] = to_answer(tokenizer, row, ends)
            bar.update(len(part))
    return _kept([answers[i] for i in range(len(prompts))], settings)


def _kept(answers: list[Answer], settings: GenerationSettings) -> list[Answer]:
    """Of every `candidates` answers in a row the one that is closest to the others, with the tokens of all of them."""
    candidates = settings.candidates
    if candidates == 1:
        return answers
    groups = [answers[i : i + candidates] for i in range(0, len(answers), candidates)]
    kept = [group[closest_to_all([answer.text for answer in group], settings.embedder)] for group in groups]
    return [replace(one, tokens=sum(a.tokens for a in group)) for one, group in zip(kept, groups, strict=True)]


def generate_batch(model, tokenizer, prompts: list[list[int]], settings: GenerationSettings) -> list[list[int]]:
    """The tokens that transformers' generate adds to prompts, padded on the left, after an end with padding.

    Greedy settings draw no random number, so that a training which asks between its steps goes on unchanged.
    """
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    device = model.device  # the embedding's own may be the CPU's (fast path)
    input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    attention_mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        pad_token_id=pad,
        eos_token_id=end_tokens(model, tokenizer),
        use_cache=True,
        **settings.arguments(),
    )
    return output[:, width:].tolist()


def to_answer(tokenizer, tokens: list[int], ends: list[int]) -> Answer:
    """The answer that ends at the first of the tokens `ends`, or has all tokens where none of them came."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    stopped, kept = end is not None, tokens[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(normalize_lines(text), stopped, len(kept) + stopped)


@torch.inference_mode()
def reference_bits(
    model, tokenizer, items: Documents, *, tokens_at_once: int = 2048, quiet: bool = False
) -> list[float | None]:
    """-log2 p(answer | prompt) of (question, answer, context) triples, eos not counted, in bits, in their order.

    Documents are packed into one row of up to `tokens_at_once` tokens where this architecture keeps packed documents
    apart; else each has its own row. The head is applied only where an answer token is predicted. None for a
    document longer than the model's context.
    """
    if not attention_of(model.config).isolates:
        tokens_at_once = 0  # then every document fills a row
    documents = encode_documents(tokenizer, items)
    limit = context_length(model.config)
    bits: list[float | None] = [None] * len(documents)
    order = sorted(
        (i for i, d in enumerate(documents) if len(d.input_ids) <= limit), key=lambda i: documents[i].input_ids
    )
    with progress(total=len(order), what="scoring references", unit="answers", quiet=quiet) as bar:
        while order:
            part, room = [], max(tokens_at_once, len(documents[order[-1]].input_ids))
            while order and len(documents[order[-1]].input_ids) <= room:
                room -= len(documents[order[-1]].input_ids)
                part.append(order.pop())
            for i, value in zip(part, _pack_bits(model, [documents[i] for i in part]), strict=True):
                bits[i] = value
            bar.update(len(part))
    return bits


def _pack_bits(model, documents: list) -> list[float]:
    device = model.get_input_embeddings().weight.device
    rows, predicting, targets, counts, offset = [], [], [], [], 0
    for document in documents:
        ids = torch.tensor(document.input_ids)
        rows.append({"input_ids": ids, "position_ids": torch.arange(len(ids)), "labels": ids})
        first, last = document.prompt_length, len(ids) - 1  # the answer's tokens without the last one, eos
        predicting.append(torch.arange(first - 1, last - 1) + offset)
        targets.append(ids[first:last])
        counts.append(last - first)
        offset += len(ids)
    joined = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    batch = collate_packs([joined], pad_token_id=0)
    logits = model(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        use_cache=False,
        logits_to_keep=torch.cat(predicting).to(device),
    ).logits[0]
    losses = torch.nn.functional.cross_entropy(logits.float(), torch.cat(targets).to(device), reduction="none")
    return [part.sum().item() / math.log(2) for part in losses.cpu().split(counts)]
