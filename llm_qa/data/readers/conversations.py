"""Conversations in chat formats: a list of turns -> questions, their answers, and the turns before each as context.

Two forms: OpenAI's {"role": "user", "content": ".."} and ShareGPT's {"from": "human", "value": ".."}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_qa.data.plain_prompt import Messages, context_text

CONVERSATION_KEYS = ("messages", "conversations", "conversation")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
}

LEARNED = ("user", "assistant")  # the roles of a question and its answer


@dataclass(frozen=True)
class Exchange:
    """A question and its answer in a conversation.

    The context is what comes before: the system message, then the earlier turns, a paragraph each. `system` is the
    system message alone, which many conversations share; `messages` are the same as the context, one by one.
    """

    question: str
    answer: str
    context: str
    system: str
    messages: Messages


def conversation_in(value: dict[str, Any]) -> list[Any] | None:
    """The list of turns of a JSON record; None where it holds no conversation."""
    return next((value[key] for key in CONVERSATION_KEYS if isinstance(value.get(key), list)), None)


def read_conversation(turns: list[Any], beside: str = "", *, learn_turns: str = "last") -> list[Exchange]:
    """The exchanges of a conversation that are learned: the last one, or `all` that answer a user's message.

    A system message `beside` the turns comes before those among them. Raises ValueError for a conversation of another
    form, or without an answer to a user's message at its end.
    """
    spoken = [_turn(turn) for turn in turns]
    while spoken and spoken[-1][0] != "assistant":
        spoken.pop()  # a last question without an answer
    if len(spoken) < 2 or spoken[-2][0] != "user":
        raise ValueError("a conversation without a question and the assistant's answer to it")
    pairs = [end for end in range(2, len(spoken) + 1) if (spoken[end - 2][0], spoken[end - 1][0]) == LEARNED]
    return [_exchange(spoken[:end], beside) for end in (pairs if learn_turns == "all" else pairs[-1:])]


def _exchange(spoken: list[tuple[str, str]], beside: str) -> Exchange:
    *earlier, (_, question), (_, answer) = spoken
    system = "\n\n".join(filter(None, [beside, *(text for role, text in earlier if role == "system")]))
    history = [(role, text) for role, text in earlier if role != "system"]
    messages = (*([("system", system)] if system else []), *history)
    return Exchange(question, answer, context_text(messages), system, messages)


def _turn(turn: Any) -> tuple[str, str]:
    """(role, text) of one turn."""
    if not isinstance(turn, dict):
        raise ValueError("a turn of the conversation is not an object")
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    known = ROLES.get(role.casefold()) if isinstance(role, str) else None
    if known is None:
        raise ValueError(f"a turn of the conversation has the role {str(role)[:40]!r}, not system, user or assistant")
    if not isinstance(text, str):
        raise ValueError("a turn of the conversation is not text")
    return known, text
