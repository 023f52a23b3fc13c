"""Questions too long for the model: what stands before them is shortened, and one too long itself is refused."""

from __future__ import annotations

import itertools

from llm_qa.console import UserError, say
from llm_qa.data.plain_prompt import Context, Questions
from llm_qa.data.prompts import encode_prompts
from llm_qa.inference.generate import context_length, room_for_prompts
from llm_qa.inference.settings import GenerationSettings


def fit_questions(tokenizer, config, questions: Questions, settings: GenerationSettings) -> list[tuple[str, Context]]:
    """The questions, each with as much of the end of its context as prompt and answer leave room for in the model.

    `config` is the model's config, so this runs before any weight is read. Prints how many contexts were shortened.
    Raises UserError where a question alone is too long, or where the longest answer leaves no room for a prompt.
    """
    room = room_for_prompts(config, settings)
    lengths = [len(prompt) for prompt in encode_prompts(tokenizer, questions)]
    too_long = [i for i, length in enumerate(lengths) if length > room]
    alone = [len(prompt) for prompt in encode_prompts(tokenizer, [(questions[i][0], "") for i in too_long])]
    if refused := [(i, length) for i, length in zip(too_long, alone, strict=True) if length > room]:
        number, length = refused[0]
        others = f" ({len(refused):,} of {len(questions):,} are too long)" if len(questions) > 1 else ""
        raise UserError(
            f"The question {questions[number][0][:40]!r} takes {length:,} tokens with its prompt, and the model's "
            f"context of {context_length(config):,} leaves {room:,} beside --max-new-tokens "
            f"{settings.max_new_tokens:,}{others}: shorten it, or lower --max-new-tokens."
        )
    fitted = list(questions)
    for i in too_long:
        fitted[i] = with_shorter_context(tokenizer, *questions[i], room)
    if too_long:
        say(
            f"warning: {len(too_long):,} of {len(questions):,} questions do not fit into the model's context of "
            f"{context_length(config):,} tokens with what stands before them: its beginning is left out"
        )
    return fitted


def with_shorter_context(tokenizer, question: str, context: Context, room: int) -> tuple[str, Context]:
    """The question with the longest end of its context that fits, found by bisection over characters or turns.

    A conversation keeps its system messages and starts with a question, as chat templates demand; where its system
    messages alone are too long, nothing is kept.
    """
    ends: list[Context] = []  # of a conversation, the longest last
    if not isinstance(context, str):
        system = tuple(itertools.takewhile(lambda message: message[0] == "system", context))
        rest = context[len(system) :]
        begins = [i for i, (role, _) in enumerate(rest) if role in ("user", "passage")]
        ends = ["", system, *((*system, *rest[i:]) for i in reversed(begins))]

    def end(choice: int) -> Context:
        return ends[choice] if ends else context[len(context) - choice :]

    least, most = 0, len(ends or context)  # end(least) fits, and the choices from `most` on do not
    while most - least > 1:
        middle = (least + most) // 2
        fits = len(encode_prompts(tokenizer, [(question, end(middle))])[0]) <= room
        least, most = (middle, most) if fits else (least, middle)
    return question, end(least)
