"""One template; the tokens asked later are the tokens trained on."""

import unicodedata

from llm_qa.data.prompts import encode_documents, encode_prompts, render_prompt, show_document


def test_the_template():
    assert render_prompt("왜 그런가요?") == "### 질문: 왜 그런가요?\n\n### 답변:"
    assert render_prompt("왜?", "문맥") == "### 맥락: 문맥\n\n### 질문: 왜?\n\n### 답변:"


def test_training_begins_with_exactly_the_tokens_that_asking_sends(tokenizer):
    document = encode_documents(tokenizer, [("질문 하나?", "답 하나.", "맥락")])[0]
    assert document.input_ids[: document.prompt_length] == encode_prompts(tokenizer, [("질문 하나?", "맥락")])[0]
    assert document.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in document.input_ids[:-1]


def test_decomposed_hangul_is_composed(tokenizer):
    composed = "벽지"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    assert encode_prompts(tokenizer, [(decomposed, "")]) == encode_prompts(tokenizer, [(composed, "")])


def test_line_breaks_of_answers_and_contexts_are_learned_and_asked(tokenizer):
    answer, context = "1) 말립니다.\n2) 바릅니다.\n\n- 끝", "첫 줄\n둘째 줄"
    document = encode_documents(tokenizer, [("왜\n그런가요?", answer, context)])[0]
    text = f"### 맥락: {context}\n\n### 질문: 왜 그런가요?\n\n### 답변: {answer}<|endoftext|>"
    assert tokenizer.decode(document.input_ids) == text


def test_the_trained_span_is_marked(tokenizer):
    document = encode_documents(tokenizer, [("왜?", "그래서.", "")])[0]
    assert show_document(tokenizer, document, "answer") == "### 질문: 왜?\n\n### 답변:⟦ 그래서.<|endoftext|>⟧"
    assert show_document(tokenizer, document, "everything").startswith("###⟦ 질문:")
