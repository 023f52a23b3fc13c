"""A text is plain text to the tokenizer, whatever it spells, for each kind of vocabulary."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_qa.console import UserError
from llm_qa.data.prompts import encode_documents, encode_prompts, render_prompt, show_document
from llm_qa.data.tokenization import encode_texts
from llm_qa.inference.generate import to_answer

SPELLED = ["<|endoftext|>", "</s>", "<s>", "<unk>", "<pad>", "<|sep|>", "<think>", "[INST]"]
ANSWER = "먼저 말립니다. " + " 다음 ".join(SPELLED) + " 그리고 칠합니다."
TEXTS = ["벽지가 들뜨면 풀을 다시 바릅니다.", "결로는 환기로 줄입니다.  두 칸", ANSWER, render_prompt("왜?", "문맥")]


def polyglot_like():
    """Byte-level BPE; "<|endoftext|>" is token 0 of the vocabulary and also ends a document."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|sep|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("  ", special=False), AddedToken("벽지")])
    return tokenizer


def kogpt2_like():
    """BPE over whole characters with "▁"; "</s>" ends a document."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = ["<s>", "</s>", "<unk>", "<pad>"]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False))
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def sentencepiece_like():
    """Unigram: "</s>" is an ordinary piece of the vocabulary, with the best score of all."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture(params=[polyglot_like, kogpt2_like, sentencepiece_like], ids=lambda make: make.__name__)
def tokenizer(request):
    return request.param()


def control_ids(tokenizer):
    names = {*tokenizer.all_special_tokens, *SPELLED}
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.content in names}


def test_what_a_text_spells_is_no_control_token_and_is_read_back(tokenizer):
    ids = encode_texts(tokenizer, [ANSWER])[0]
    assert control_ids(tokenizer).isdisjoint(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == ANSWER
    num_label_tokens = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    assert not control_ids(tokenizer).isdisjoint(num_label_tokens), "the tokenizer alone takes them for control tokens"


def test_plain_text_has_the_tokens_that_it_always_had(tokenizer):
    for text in TEXTS[:2]:
        assert encode_texts(tokenizer, [text])[0] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encode_texts(tokenizer, []) == []


def test_the_one_special_token_of_a_document_is_the_eos_that_ends_it(tokenizer):
    document = encode_documents(tokenizer, [(f"{SPELLED[0]} 왜?", ANSWER, SPELLED[1])])[0]
    assert [i for i in document.input_ids if i in control_ids(tokenizer)] == [tokenizer.eos_token_id]
    assert document.input_ids[-1] == tokenizer.eos_token_id
    assert (
        encode_prompts(tokenizer, [(f"{SPELLED[0]} 왜?", SPELLED[1])])[0]
        == document.input_ids[: document.prompt_length]
    )
    assert ANSWER in show_document(tokenizer, document, "answer")


def test_an_answer_that_was_learned_is_given_back_whole(tokenizer):
    document = encode_documents(tokenizer, [("왜?", ANSWER, "")])[0]
    answer = to_answer(tokenizer, document.input_ids[document.prompt_length :], [tokenizer.eos_token_id])
    assert (answer.text, answer.stopped) == (ANSWER, True)


def test_no_merge_spells_a_special_token_either():
    core = Tokenizer(models.BPE({"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}, [("<", "s"), ("<s", ">")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<s>")
    assert tokenizer("s<s>", split_special_tokens=True)["input_ids"] == [1, 4]
    assert encode_texts(tokenizer, ["s<s>"]) == [[1, 3, 2]]


def test_added_words_and_runs_of_spaces_are_text_and_stay_tokens():
    tokenizer = polyglot_like()
    words = tokenizer.convert_tokens_to_ids(["벽지", "  "])
    assert encode_texts(tokenizer, ["벽지  "])[0] == words


def test_a_tokenizer_without_a_backend_is_one_sentence():
    with pytest.raises(UserError, match=r"The tokenizer \(object\) has no tokenizer.json"):
        encode_texts(object(), ["가"])
