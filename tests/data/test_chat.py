"""A model's own chat template: what is trained is what every later program asks, token for token."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llm_qa.console import UserError
from llm_qa.data.chat import choose_prompt, uses_chat
from llm_qa.data.chat_template import PLAIN_CHAT_TEMPLATE
from llm_qa.data.plain_prompt import context_text
from llm_qa.data.prompts import encode_documents, encode_prompts, render_prompt, show_document, show_prompt
from llm_qa.models.loading import load_tokenizer, save_tokenizer

QUESTION, ANSWER, PASSAGE = "왜 벽지에 곰팡이가 생기나요?", "1) 습기 때문입니다.\n2) 말립니다.", "첫 줄\n\n둘째 줄"
MESSAGES = (("system", "짧게 답하세요."), ("user", "벽지가 뭔가요?"), ("assistant", "벽에 바르는 종이입니다."))
LLAMA = """{{- bos_token -}}
{%- for message in messages -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"""
# It thinks before it answers, unless told not to, and writes a new line after the end of a turn.
QWEN3 = """{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\n' -}}
  {%- if message.role == 'assistant' and loop.last -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
  {{- message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}"""
# The system message begins the first question; questions and answers must take turns.
GEMMA = """{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
  {%- set first = messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
  {%- set first = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate') -}}
  {%- endif -%}
  {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' -}}
  {%- if loop.first -%}{{- first -}}{%- endif -%}
  {{- message['content'] | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"""
EXAONE = """{%- for message in messages -%}
  {{- '[|' + message.role + '|]' + message.content + '[|endofturn|]\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}"""
# template, special tokens, eos of the base, the token that ends a turn, SentencePiece
FAMILIES = {
    "Llama": (
        LLAMA,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|end_of_text|>",
        "<|eot_id|>",
        False,
    ),
    "Qwen3": (QWEN3, ["<|im_start|>", "<think>", "</think>"], "<|endoftext|>", "<|im_end|>", False),
    "Gemma": (GEMMA, ["<bos>", "<start_of_turn>"], "<eos>", "<end_of_turn>", True),
    "EXAONE": (EXAONE, ["[BOS]", "[|system|]", "[|user|]", "[|assistant|]"], "[|endofturn|]", "[|endofturn|]", False),
}


def make_tokenizer(template: str, specials: list[str], eos: str, end_of_turn: str, sentence_piece: bool):
    """A tokenizer of a family: byte-level BPE, or SentencePiece with "▁" for spaces."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True) if sentence_piece else models.BPE())
    if sentence_piece:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        first = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*first, *specials, eos, end_of_turn])
    else:
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=list(dict.fromkeys([*specials, eos, end_of_turn])),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    core.train_from_iterator([QUESTION, ANSWER, PASSAGE, "user\nassistant\n\n", "model system"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=specials[0], pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param, make_tokenizer(*FAMILIES[request.param])


def templated(tokenizer, *messages: tuple[str, str], prompt: bool = True) -> list[int]:
    said = [{"role": role, "content": text} for role, text in messages]
    return tokenizer.apply_chat_template(said, add_generation_prompt=prompt, return_dict=False)


def test_what_is_trained_is_what_the_saved_template_renders(family, tmp_path):
    name, tokenizer = family
    assert choose_prompt(tokenizer, "auto") == "chat"
    assert tokenizer.eos_token == FAMILIES[name][3], "answers end as the template ends a turn"
    save_tokenizer(tokenizer, tmp_path)
    reopened = load_tokenizer(tmp_path)
    assert choose_prompt(reopened, "auto") == "chat"
    assert reopened.chat_template == tokenizer.chat_template, "choosing again changes nothing"
    for context, messages in (
        ("", [("user", QUESTION)]),
        (PASSAGE, [("user", f"{PASSAGE}\n\n{QUESTION}")]),
        (MESSAGES, [*MESSAGES, ("user", QUESTION)]),
    ):
        prompt = templated(reopened, *messages)
        assert encode_prompts(tokenizer, [(QUESTION, context)]) == [prompt]
        (document,) = encode_documents(reopened, [(QUESTION, ANSWER, context)])
        whole = templated(reopened, *messages, ("assistant", ANSWER), prompt=False)
        if whole[: len(prompt)] == prompt:
            assert document.input_ids == whole[: len(document.input_ids)]
        else:  # at the boundary the whole is tokenised otherwise than a prompt alone, which is what will be asked
            assert name in ("Llama", "Qwen3"), "whose prompts end in two new lines"
            assert reopened.decode(whole).startswith(reopened.decode(document.input_ids))
        assert document.input_ids[: document.prompt_length] == prompt
        assert document.input_ids[-1] == reopened.eos_token_id
        assert document.input_ids.index(reopened.eos_token_id, document.prompt_length) == len(document.input_ids) - 1
        learned = show_document(reopened, document, "answer").partition("⟦")[2]
        assert learned == f"{ANSWER}{reopened.eos_token}⟧", "the answer and its end are learned, and nothing else"


def test_a_special_token_spelled_in_a_text_is_text(family):
    name, tokenizer = family
    choose_prompt(tokenizer, "chat")
    spelled = f"{FAMILIES[name][1][-1]} {tokenizer.eos_token} 는 무엇인가요?"
    (prompt,), (plain,) = (encode_prompts(tokenizer, [(text, "")]) for text in (spelled, "무엇인가요?"))
    for token in (FAMILIES[name][1][-1], tokenizer.eos_token):
        number = tokenizer.convert_tokens_to_ids(token)
        assert prompt.count(number) == plain.count(number)


def test_a_text_that_spells_the_place_of_another_stays_text(family):
    _, tokenizer = family
    [document] = encode_documents(tokenizer, [(QUESTION + " \ue0001\ue001", "비밀", "")])
    prompt = tokenizer.decode(document.input_ids[: document.prompt_length])
    assert "비밀" not in prompt
    assert "비밀" in tokenizer.decode(document.input_ids[document.prompt_length :])


def test_the_system_prompt_is_sent_unless_a_conversation_has_one(family):
    tokenizer = family[1]
    said = '‘친절하게’ "답하세요".\n{{ 7 * 7 }}'
    choose_prompt(tokenizer, "chat", said)
    assert encode_prompts(tokenizer, [(QUESTION, "")]) == [templated(tokenizer, ("user", QUESTION))]
    assert said in show_prompt(tokenizer, QUESTION)
    with_own = tokenizer.decode(encode_prompts(tokenizer, [(QUESTION, MESSAGES)])[0])
    assert "짧게 답하세요." in with_own
    assert said not in with_own


def test_plain_stays_plain(family):
    tokenizer = family[1]
    eos = tokenizer.eos_token
    assert choose_prompt(tokenizer, "plain") == "plain"
    assert not uses_chat(tokenizer)
    assert tokenizer.eos_token == eos
    assert show_prompt(tokenizer, QUESTION) == render_prompt(QUESTION)
    flattened = context_text(MESSAGES)
    assert encode_prompts(tokenizer, [(QUESTION, MESSAGES)]) == encode_prompts(tokenizer, [(QUESTION, flattened)])
    assert choose_prompt(tokenizer, "auto") == "plain", "a run's folder says that it was trained plainly"
    with pytest.raises(UserError, match="--system-prompt is part of a chat template"):
        choose_prompt(tokenizer, "auto", "짧게")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "--prompt chat needs a tokenizer with a chat template"),
        ("{{ messages[-1]['content'] }}{{ messages | length }}", "renders a question otherwise once it is answered"),
        ("{% for message in messages %}{{ message.role }}{% endfor %}", "leaves out the text of a message"),
        ("{{ raise_exception('never') }}", r"refuses messages of user \(never\)"),
    ],
)
def test_a_template_that_cannot_be_trained_is_refused_in_a_sentence(template, message):
    tokenizer = make_tokenizer(*FAMILIES["Llama"])
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        choose_prompt(tokenizer, "chat")
    assert tokenizer.chat_template != PLAIN_CHAT_TEMPLATE


def test_a_template_without_an_end_of_turn_ends_with_eos():
    tokenizer = make_tokenizer(*FAMILIES["Llama"])
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
        + ("{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    )
    choose_prompt(tokenizer, "chat")
    assert tokenizer.eos_token == "<|end_of_text|>"
    (document,) = encode_documents(tokenizer, [(QUESTION, ANSWER, "")])
    assert tokenizer.decode(document.input_ids).endswith(f"assistant: {ANSWER}<|end_of_text|>")
