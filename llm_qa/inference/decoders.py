"""Which decoder answers, transformers' generate or the static one, and building the static one for a loaded model."""

from __future__ import annotations

import torch

from llm_qa.console import Failed, UserError, say
from llm_qa.data.plain_prompt import Questions
from llm_qa.inference.generate import fitting_prompts
from llm_qa.inference.merged_weights import USABLE, free_bytes
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import StaticDecoder, cache_bytes, reason_against
from llm_qa.models.loading import end_tokens
from llm_qa.models.precision import gpu_capability

# Relative distance allowed between the static decoder's and the model's own logits. fp8 products round activations too,
# where the smallest difference may fall to the other side: 9 to 10% with random weights of 40 layers.
MOST_DIFFERENT, MOST_DIFFERENT_FP8 = 0.05, 0.2


def choose_decoder(decoder: str, config) -> str:
    """'static' or 'plain', for one of DECODERS and a model with this config; no weights are needed.

    `auto` is static on a GPU where it supports the model; else a line says why it is not used. UserError where static
    was asked for and does not support the model.
    """
    if decoder == "plain":
        return decoder
    capability = gpu_capability()
    reason = reason_against(config, capability)
    if decoder == "static" and reason:
        raise UserError(f"--decoder static cannot answer here, because {reason}: set --decoder plain.")
    if decoder == "auto" and (reason := reason or (None if capability else "there is no GPU")):
        say(f"answering by transformers' generate: {reason}")
        return "plain"
    return "static"


def build_decoder(model, tokenizer, rows: int, context: int) -> StaticDecoder:
    """A static decoder for up to `rows` sequences of `context` tokens, prompt and answer, at once.

    It has the adapter enabled or disabled as it is now, and fewer rows where the memory is short. Its logits are first
    compared with the model's own: Failed where they differ.
    """
    fitting = int(USABLE * free_bytes(model.device) / cache_bytes(model, 1, context))
    decoder = StaticDecoder(
        model,
        max(1, min(rows, fitting)),
        context,
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    say(decoder.report)
    fp8 = any(layer.dense.weight[0].dtype == torch.float8_e4m3fn for layer in decoder.layers)
    if not (difference := decoder.difference()) <= (MOST_DIFFERENT_FP8 if fp8 else MOST_DIFFERENT):  # NaN too
        raise Failed(
            f"The static decoder's logits differ by {difference:.0%} from the model's own here: answer with --decoder "
            "plain, and please report it."
        )
    return decoder


def decoder_for(model, tokenizer, questions: Questions, settings: GenerationSettings, rows: int) -> StaticDecoder:
    """A static decoder with room for these (question, context) pairs and their answers, up to `rows` at once."""
    longest = max(map(len, fitting_prompts(model, tokenizer, questions, settings)), default=1)
    return build_decoder(
        model, tokenizer, max(1, min(rows, len(questions) * settings.candidates)), longest + settings.max_new_tokens
    )
