"""Records: one piece of knowledge with several questions and several right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_qa.data.plain_prompt import Context, Messages

ROLES = ("system", "user", "assistant", "passage")
EARLIER = "earlier_messages"  # not `messages`, by which a file says that it holds whole conversations


def passage_of(context: str, system: str) -> str:
    """A context without the system message that it starts with."""
    return context.removeprefix(system).strip()


@dataclass(frozen=True)
class QARecord:
    """Questions that ask the same thing, and answers that are right for each of them.

    The context is what the answer is based on: a passage, or the start of a conversation. `system` is a system message
    at its start, an instruction that many conversations share; `messages` are the context of a conversation one by one,
    which a chat template renders as such. `conversation` is shared by all records of one conversation, where several of
    its answers are learned: they belong to one group.
    """

    id: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    category: str = ""
    context: str = ""
    system: str = ""
    messages: Messages = ()
    conversation: str = ""

    @property
    def given(self) -> Context:
        """What stands before the question: the messages of a conversation, a system message and a passage, or that."""
        if self.messages or not self.system:
            return self.messages or self.context
        return (("system", self.system), *([("passage", self.passage)] if self.passage else []))

    @property
    def passage(self) -> str:
        """The context without the system message; records that share it belong to one group."""
        return passage_of(self.context, self.system)

    def pairs(self) -> list[tuple[str, str]]:
        """Every question with every answer, in order."""
        return [(question, answer) for question in self.questions for answer in self.answers]

    def to_json(self) -> dict[str, Any]:
        """The record as a line of a .jsonl file."""
        value = {
            "id": self.id,
            "category": self.category,
            "questions": list(self.questions),
            "answers": list(self.answers),
        }
        value |= {key: getattr(self, key) for key in ("context", "system", "conversation") if getattr(self, key)}
        return value | ({EARLIER: messages_json(self.messages)} if self.messages else {})

    @classmethod
    def from_json(cls, value: Any) -> QARecord:
        """The inverse of to_json; ValueError says what is wrong."""
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        for key in ("questions", "answers"):
            items = value.get(key)
            if not isinstance(items, list) or not items or not all(isinstance(i, str) and i.strip() for i in items):
                raise ValueError(f"{key} is not a list of texts")
        for key in ("id", "category", "context", "system", "conversation"):
            if not isinstance(value.get(key, ""), str):
                raise ValueError(f"{key} is not text")
        return cls(
            value.get("id", ""),
            tuple(value["questions"]),
            tuple(value["answers"]),
            value.get("category", ""),
            value.get("context", ""),
            value.get("system", ""),
            messages_from_json(value.get(EARLIER, [])),
            value.get("conversation", ""),
        )


def messages_json(messages: Messages) -> list[dict[str, str]]:
    """Messages as chat formats write them."""
    return [{"role": role, "content": text} for role, text in messages]


def messages_from_json(value: Any) -> Messages:
    """The inverse of messages_json; ValueError where it is not a list of messages."""
    try:
        messages = tuple((turn["role"], turn["content"]) for turn in value)
    except (TypeError, KeyError):
        raise ValueError(f"{EARLIER} is not a list of objects with role and content") from None
    if not all(isinstance(text, str) and role in ROLES for role, text in messages):
        raise ValueError(f"{EARLIER} holds a role that is not of {', '.join(ROLES)}, or a content that is not text")
    return messages
