"""The plain prompt as text, and what stands before a question: a passage, or the messages of a conversation.

### 맥락: <context>          (only where a record has one)

### 질문: <question>

### 답변: <answer>
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_qa.data.text import normalize, normalize_lines

QUESTION_TAG, CONTEXT_TAG, ANSWER_TAG = "### 질문:", "### 맥락:", "### 답변:"
NAMES = {"user": "질문: ", "assistant": "답변: "}  # how earlier turns are told apart inside the context
# (role, text). The roles are those of chat templates, system, user and assistant, and "passage" for a text that the
# question is about, which a chat template has no role for: it stands before the question in the user's message.
Messages = tuple[tuple[str, str], ...]
Context = str | Messages
Questions = Sequence[tuple[str, Context]]  # (question, context)
Documents = Sequence[tuple[str, str, Context]]  # (question, answer, context)


def context_text(context: Context) -> str:
    """A context as one text: of messages first those of the system, then all others in order, a paragraph each."""
    if isinstance(context, str):
        return context
    system = [text for role, text in context if role == "system"]
    return "\n\n".join([*system, *(NAMES.get(role, "") + text for role, text in context if role != "system")])


def render_prompt(question: str, context: Context = "") -> str:
    """The text that an answer continues; ends with the answer tag, without a trailing space."""
    text = context_text(context)
    parts = [f"{CONTEXT_TAG} {normalize_lines(text)}"] if text else []
    return "\n\n".join([*parts, f"{QUESTION_TAG} {normalize(question)}", ANSWER_TAG])


def render_answer(answer: str) -> str:
    """The text that follows the prompt: a space and the answer."""
    return f" {normalize_lines(answer)}"
