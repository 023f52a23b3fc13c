"""Questions longer than the model's context."""

import pytest
from transformers import GPT2Config

from llm_qa.console import UserError
from llm_qa.data.prompts import encode_prompts
from llm_qa.inference.fitting import fit_questions
from llm_qa.inference.settings import GenerationSettings

CONFIG = GPT2Config(n_positions=96)
SETTINGS = GenerationSettings(max_new_tokens=16)
LONG = "벽지가 들뜨면 풀을 다시 바릅니다 " * 40


def test_what_fits_is_left_alone_without_a_word(tokenizer, capsys):
    asked = [("왜?", ""), ("언제?", "결로는 환기로 줄입니다")]
    assert fit_questions(tokenizer, CONFIG, asked, SETTINGS) == asked
    assert capsys.readouterr().out == ""


def test_the_beginning_of_a_passage_is_left_out_and_said(tokenizer, capsys):
    asked = [("왜?", ""), ("언제 까나요?", LONG + "끝")]
    fitted = fit_questions(tokenizer, CONFIG, asked, SETTINGS)
    assert fitted[0] == asked[0]
    question, context = fitted[1]
    assert question == asked[1][0]
    assert asked[1][1].endswith(context)
    assert context
    room = CONFIG.n_positions - SETTINGS.max_new_tokens
    assert room - 8 < len(encode_prompts(tokenizer, [fitted[1]])[0]) <= room, "as much of it as fits"
    assert "1 of 2 questions do not fit into the model's context of 96 tokens" in capsys.readouterr().out


def test_a_long_conversation_keeps_its_system_message_and_starts_with_a_question(tokenizer):
    system, answer = ("system", "짧게."), ("assistant", "네.")
    short, long = ("user", "왜?"), ("user", LONG)

    def kept(*messages):
        return fit_questions(tokenizer, CONFIG, [("언제?", messages)], SETTINGS)[0][1]

    assert kept(system, long, answer, short, answer) == (system, short, answer)
    assert kept(system, short, ("assistant", LONG)) == (system,)
    assert kept(short, answer, long, answer) == ()
    assert kept(("system", LONG), short, answer) == ""


@pytest.mark.parametrize("context", ["", LONG])
def test_a_question_that_is_too_long_itself_is_refused(tokenizer, context):
    with pytest.raises(UserError, match=r"takes \d+ tokens .* leaves 80 beside --max-new-tokens 16 \(1 of 2 are too"):
        fit_questions(tokenizer, CONFIG, [("왜?", ""), (LONG + "?", context)], SETTINGS)
    with pytest.raises(UserError, match="--max-new-tokens 96 leaves no room"):
        fit_questions(tokenizer, CONFIG, [("왜?", "")], GenerationSettings(max_new_tokens=96))
