"""The template beside a run's weights renders the prompt that was trained, token for token."""

import jinja2
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llm_qa.data.chat_template import PLAIN_CHAT_TEMPLATE
from llm_qa.data.prompts import encode_documents, encode_prompts
from llm_qa.data.readers.conversations import read_conversation
from llm_qa.models.loading import load_tokenizer, save_tokenizer

TEXTS = [
    "### 맥락: 벽지는 종이입니다.\n\n### 질문: 왜 그런가요?\n\n### 답변: 습기 때문입니다.",
    "질문: 곰팡이 답변: 말립니다.",
]
QUESTION, ANSWER, PASSAGE = "왜 벽지에 곰팡이가 생기나요?", "1) 습기 때문입니다.\n2) 말립니다.", "첫 줄\n\n둘째 줄"
TURNS = [
    {"role": "system", "content": "짧게 답하세요."},
    {"role": "user", "content": "벽지가 뭔가요?"},
    {"role": "assistant", "content": "벽에 바르는 종이입니다."},
    {"role": "user", "content": QUESTION},
]


def byte_level(eos: str, bos: str) -> PreTrainedTokenizerFast:
    """As of GPT-NeoX, GPT-2, Llama 3, Qwen and EXAONE: BPE on bytes, which differ in their special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS * 4, trainers.BpeTrainer(vocab_size=400, special_tokens=sorted({eos, bos}), initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos)


def sentence_piece() -> PreTrainedTokenizerFast:
    """As of Llama 2 and Gemma: spaces are "▁", and one is put before every text."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=500, special_tokens=specials))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


BYTE_LEVEL = {
    "GPT-NeoX and GPT-2": ("<|endoftext|>", "<|endoftext|>"),
    "Llama 3": ("<|eot_id|>", "<|begin_of_text|>"),
    "Qwen": ("<|im_end|>", "<|endoftext|>"),
    "EXAONE": ("[|endofturn|]", "[BOS]"),
}


@pytest.fixture(scope="module", params=[*BYTE_LEVEL, "SentencePiece"])
def saved(request, tmp_path_factory):
    """A tokenizer as a run's final folder holds it, read back; its base had a template of its own."""
    tokenizer = byte_level(*BYTE_LEVEL[request.param]) if request.param in BYTE_LEVEL else sentence_piece()
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("saved")
    save_tokenizer(tokenizer, folder)
    return load_tokenizer(folder)


def rendered(tokenizer, messages: list[dict], **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def test_a_question_alone(saved):
    asked = rendered(saved, [{"role": "user", "content": f"  {QUESTION}\n"}], add_generation_prompt=True)
    assert asked == encode_prompts(saved, [(QUESTION, "")])[0]
    document = encode_documents(saved, [(QUESTION, ANSWER, "")])[0]
    assert asked == document.input_ids[: document.prompt_length], "the prompt of training"


def test_a_passage_is_the_system_message(saved):
    messages = [{"role": "system", "content": PASSAGE}, {"role": "user", "content": QUESTION}]
    assert rendered(saved, messages, add_generation_prompt=True) == encode_prompts(saved, [(QUESTION, PASSAGE)])[0]


def test_earlier_turns_are_the_context_that_the_same_conversation_has_as_data(saved):
    (exchange,) = read_conversation([*TURNS, {"role": "assistant", "content": ANSWER}])
    document = encode_documents(saved, [(exchange.question, exchange.answer, exchange.context)])[0]
    prompt = document.input_ids[: document.prompt_length]
    assert rendered(saved, TURNS, add_generation_prompt=True) == prompt


@pytest.mark.parametrize("eos_bos", BYTE_LEVEL.values(), ids=BYTE_LEVEL)
def test_a_whole_conversation_is_the_document_that_was_trained(eos_bos):
    """SentencePiece tokenises a text's start differently, and training tokenises prompt and answer apart."""
    tokenizer = byte_level(*eos_bos)
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    turns = [*TURNS, {"role": "assistant", "content": ANSWER}]
    (exchange,) = read_conversation(turns)
    assert (
        rendered(tokenizer, turns)
        == encode_documents(tokenizer, [(exchange.question, exchange.answer, exchange.context)])[0].input_ids
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([TURNS[0]], "must end with a question"),
        ([TURNS[0], TURNS[2]], "must end with a question"),
        ([TURNS[2]], "must end with a question"),
        ([{"role": "tool", "content": "7"}, TURNS[3]], "role of a message must be"),
        ([{"role": "user", "content": [{"type": "text", "text": "왜?"}]}], "must be text"),
    ],
)
def test_what_was_not_trained_is_refused(messages, reason):
    tokenizer = byte_level("</s>", "<s>")
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    with pytest.raises(jinja2.TemplateError, match=reason):
        rendered(tokenizer, messages, add_generation_prompt=True)
