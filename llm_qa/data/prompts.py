"""The one prompt template, shared by training, evaluation and asking, and its tokens.

    ### 맥락: <context>          (only where a record has one)

    ### 질문: <question>

    ### 답변: <answer><eos>

The prompt and the answer are tokenised separately and their tokens joined, so that a prompt has the same tokens in
training and in generation, whatever the tokenizer does at a boundary. Special tokens spelled in a text are plain text
(`tokenization.py`): the eos that ends a document is the only special token in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_qa.data.text import normalize, normalize_lines
from llm_qa.data.tokenization import encode_texts

QUESTION_TAG, CONTEXT_TAG, ANSWER_TAG = "### 질문:", "### 맥락:", "### 답변:"


@dataclass(frozen=True)
class Document:
    """A tokenised question and answer: token ids; the first `prompt_length` are the prompt and have no label."""

    input_ids: list[int]
    prompt_length: int


def render_prompt(question: str, context: str = "") -> str:
    """The text that an answer continues; ends with the answer tag, without a trailing space."""
    parts = [f"{CONTEXT_TAG} {normalize_lines(context)}"] if context else []
    return "\n\n".join([*parts, f"{QUESTION_TAG} {normalize(question)}", ANSWER_TAG])


def render_answer(answer: str) -> str:
    """The text that follows the prompt: a space and the answer (eos is a token, added by encode_documents)."""
    return f" {normalize_lines(answer)}"


def encode_prompts(tokenizer, questions: list[tuple[str, str]]) -> list[list[int]]:
    """Token ids of the prompts of (question, context) pairs, for generation."""
    return encode_texts(tokenizer, [render_prompt(*question) for question in questions])


def encode_answers(tokenizer, answers: list[str]) -> list[list[int]]:
    """Token ids of the answers without eos."""
    return encode_texts(tokenizer, [render_answer(answer) for answer in answers])


def encode_documents(tokenizer, pairs: list[tuple[str, str, str]]) -> list[Document]:
    """Tokenise (question, answer, context) triples; every document ends with the tokenizer's eos.

    A text that several pairs share is tokenised once.
    """
    questions = list(dict.fromkeys((question, context) for question, _, context in pairs))
    answers = list(dict.fromkeys(answer for _, answer, _ in pairs))
    prompt_ids = dict(zip(questions, encode_prompts(tokenizer, questions), strict=True))
    answer_ids = dict(zip(answers, encode_answers(tokenizer, answers), strict=True))
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
