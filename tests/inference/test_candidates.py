"""Of several drawn answers the one closest to the others, in the function and by the command line."""

import pytest
import torch
from command_line import run_script
from sacrebleu.metrics import CHRF
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from llm_qa.console import UserError
from llm_qa.inference.candidates import closest_to_all
from llm_qa.inference.generate import generate_answers
from llm_qa.inference.settings import GenerationSettings, named_settings

TEXTS = ["벽지를 다시 붙이세요.", "창문을 여세요.", "벽지를 다시 붙이면 됩니다.", "벽지를 새로 붙이세요."]


def test_it_is_the_candidate_with_the_highest_mean_similarity():
    chrf = CHRF(word_order=2)
    means = [
        sum(chrf.sentence_score(text, [other]).score for j, other in enumerate(TEXTS) if j != i) / (len(TEXTS) - 1)
        for i, text in enumerate(TEXTS)
    ]
    assert closest_to_all(TEXTS) == means.index(max(means)) != 1
    assert closest_to_all(["", "", "가"]) == 2, "an empty answer only where all are empty"
    assert closest_to_all(["", ""]) == 0
    assert closest_to_all(["가"]) == 0


@pytest.mark.parametrize("decoder", [False, True])
def test_the_kept_answer_is_one_of_those_that_are_drawn(neox_folder, decoder):
    from llm_qa.inference.decoders import build_decoder

    model = GPTNeoXForCausalLM.from_pretrained(neox_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(neox_folder)
    drawn = GenerationSettings(max_new_tokens=6, do_sample=True, temperature=1.5, seed=3)
    several = GenerationSettings(max_new_tokens=6, do_sample=True, temperature=1.5, seed=3, candidates=4)
    static = build_decoder(model, tokenizer, 4, 64) if decoder else None
    questions = [("결로는 왜 생기나요?", ""), ("벽지는요?", "")]
    (kept, other) = generate_answers(model, tokenizer, questions, several, decoder=static, quiet=True)
    repeated = [question for question in questions for _ in range(4)]
    single = generate_answers(model, tokenizer, repeated, drawn, decoder=static, quiet=True)
    texts = [answer.text for answer in single]
    assert kept.tokens == sum(answer.tokens for answer in single[:4]), "what was generated for it"
    assert kept.text == texts[:4][closest_to_all(texts[:4])]
    assert other.text == texts[4:][closest_to_all(texts[4:])]
    assert len(set(texts[:4])) > 1


def test_settings_of_one_candidate_are_written_as_before():
    assert "candidates" not in named_settings("greedy", 8).to_dict()
    several = named_settings("greedy", 8, candidates=5)
    assert several.to_dict()["candidates"] == 5
    assert several.do_sample
    with pytest.raises(UserError, match="would draw 5 equal answers"):
        named_settings("original", 8, candidates=5)


def test_one_question_is_answered_by_the_command_line(neox_folder):
    flags = ["--model", neox_folder, "--base-precision", "fp32", "--max-new-tokens", "6", "결로는 왜 생기나요?"]
    done = run_script("scripts/ask.py", *flags, "--candidates", "3")
    assert done.returncode == 0, done.stderr
    assert "--candidates 3: in place of the greedy answer, answers are drawn at temperature 0.7" in done.stdout
    assert len(done.stdout.strip().splitlines()[-1]) > 0
    done = run_script("scripts/ask.py", *flags, "--candidates", "0")
    assert done.returncode == 2
