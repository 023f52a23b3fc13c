"""How fast a model answers, on random prompts: by transformers' generate, by the static decoder, as the original did.

Random weights hardly ever end an answer, so every answer is made as long as is asked for, and all its tokens count.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from llm_qa.inference.continuous_batching import generate
from llm_qa.inference.settings import ORIGINAL_SAMPLING, GenerationSettings
from llm_qa.inference.static_decoder import StaticDecoder
from llm_qa.planning.this_gpu import peak_memory_bytes

ANSWERING = ("original", "plain", "static")  # the original notebooks' loop; as evaluate.py's --decoder


def measure_answering(
    model: torch.nn.Module,
    how: str,
    *,
    questions: int = 256,
    rows: int = 256,
    prompt_tokens: int = 16,
    new_tokens: int = 128,
    folded: bool | None = None,
) -> dict[str, Any]:
    """Answer `questions` random prompts, `rows` at once, in one of the ways of ANSWERING; one row of a table.

    Tokens a second are of new tokens, prompts' reading included in the time; a token step is the time for one more
    token of a batch. Building the decoder, its graphs and the first pass come before, as `build_seconds`. `original`
    asks one at a time with the original's sampling: give it few questions. `folded` None lets memory decide.
    Raises RuntimeError where logits are not finite: such a run is faster and no measurement.
    """
    rows = 1 if how == "original" else min(rows, questions)
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (questions, prompt_tokens), generator=generator)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    began = now()
    report = "transformers' generate"
    if how == "static":
        decoder = StaticDecoder(
            model, rows, prompt_tokens + new_tokens, eos_token_id=vocabulary, pad_token_id=0, folded=folded
        )  # fmt: skip
        report = decoder.report

        def answer(part: torch.Tensor, new_tokens: int = new_tokens) -> int:
            settings = GenerationSettings(max_new_tokens=new_tokens)
            return sum(map(len, generate(decoder, part.tolist(), settings)))

        answer(prompts[:rows])  # all graphs
        finite = decoder.logits.isfinite().all().item()
    else:
        settings = ORIGINAL_SAMPLING if how == "original" else GenerationSettings()

        def answer(part: torch.Tensor, new_tokens: int = new_tokens) -> int:
            arguments = settings.arguments() | {"max_new_tokens": new_tokens}
            return sum(_generated(model, batch.to(device), **arguments) for batch in part.split(rows))

        answer(prompts[:rows], min(2, new_tokens))
        with torch.inference_mode():
            finite = model(input_ids=prompts[:1].to(device), use_cache=False).logits.isfinite().all().item()
    if not finite:
        raise RuntimeError(f"the logits of {how} answering are not finite: this is no measurement")
    started = now()
    tokens = answer(prompts)
    seconds = now() - started
    batches = -(-questions // rows)
    return {
        "how": how,
        "questions": questions,
        "rows": rows,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "tokens_measured": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "milliseconds_a_token_step": round(seconds * 1e3 / (batches * new_tokens), 3),
        "build_seconds": round(started - began, 1),
        "peak_allocated_bytes": peak_memory_bytes(),
        "report": report,
    }


@torch.inference_mode()
def _generated(model: torch.nn.Module, prompts: torch.Tensor, **arguments: Any) -> int:
    """New tokens that transformers' generate made of prompts of one length, none of them ended by an eos."""
    output = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        eos_token_id=model.get_input_embeddings().num_embeddings,  # no token has this id
        pad_token_id=0,
        use_cache=True,
        **arguments,
    )
    return output[:, prompts.shape[1] :].numel()
