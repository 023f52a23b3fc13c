"""Questions and answers as tokens, in the format that the tokenizer carries; training, evaluation and asking share it.

The plain prompt (`plain_prompt.py`) is what a tokenizer without a chat template of its own means; else the template is
rendered (`chat.py`). Of the plain prompt, prompt and answer are tokenised separately and their tokens joined, so that a
prompt has the same tokens in training and in generation, whatever the tokenizer does at a boundary. Special tokens
spelled in a text are plain text (`tokenization.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.data.chat import encode_chat_documents, encode_chat_prompts, show_chat_prompt, uses_chat
from llm_qa.data.plain_prompt import Context, Documents, Questions, render_answer, render_prompt
from llm_qa.data.tokenization import encode_texts


@dataclass(frozen=True)
class Document:
    """A tokenised question and answer: token ids; the first `prompt_length` are the prompt and have no label."""

    input_ids: list[int]
    prompt_length: int


def encode_prompts(tokenizer, questions: Questions) -> list[list[int]]:
    """Token ids of the prompts of (question, context) pairs, for generation."""
    if uses_chat(tokenizer):
        return encode_chat_prompts(tokenizer, questions)
    return encode_texts(tokenizer, [render_prompt(*question) for question in questions])


def encode_documents(tokenizer, pairs: Documents) -> list[Document]:
    """Tokenise (question, answer, context) triples; every document ends with the tokenizer's eos.

    A text that several pairs share is tokenised once.
    """
    if uses_chat(tokenizer):
        return [Document(*document) for document in encode_chat_documents(tokenizer, pairs)]
    questions = list(dict.fromkeys((question, context) for question, _, context in pairs))
    answers = list(dict.fromkeys(answer for _, answer, _ in pairs))
    prompt_ids = dict(zip(questions, encode_prompts(tokenizer, questions), strict=True))
    answer_ids = dict(zip(answers, encode_texts(tokenizer, list(map(render_answer, answers))), strict=True))
    eos = tokenizer.eos_token_id
    return [
        Document([*prompt_ids[question, context], *answer_ids[answer], eos], len(prompt_ids[question, context]))
        for question, answer, context in pairs
    ]


def show_document(tokenizer, document: Document, loss_on: str) -> str:
    """The document as text with its label tokens between ⟦ and ⟧, shown at the start of training."""
    start = 1 if loss_on == "everything" else document.prompt_length
    given, trained = document.input_ids[:start], document.input_ids[start:]
    return f"{tokenizer.decode(given)}⟦{tokenizer.decode(trained)}⟧"


def show_prompt(tokenizer, question: str, context: Context = "") -> str:
    """The text that an answer continues, in the tokenizer's format, special tokens spelled out."""
    return show_chat_prompt(tokenizer, question, context) if uses_chat(tokenizer) else render_prompt(question, context)
