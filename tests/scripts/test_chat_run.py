"""A base with a chat template, from training to export through the commands: its own format everywhere."""

import json

import pytest
import torch
import yaml
from architectures import small_config
from command_line import run_script
from data.test_chat import FAMILIES, make_tokenizer
from scripts.test_ask import Terminal
from transformers import AutoModelForCausalLM, GenerationConfig

from llm_qa import files
from llm_qa.data.prompts import encode_prompts
from llm_qa.inference.generate import generate_answers
from llm_qa.inference.settings import GenerationSettings
from llm_qa.models.loading import load_run, load_tokenizer, save_tokenizer

RECIPE = """model: {base}
base_precision: 16bit
lora_r: 2
max_length: 128
pack_length: 128
max_steps: 2
logging_steps: 1
system_prompt: 짧게 답하세요.
"""
TURNS = [{"role": "user", "content": "벽지가 뭔가요?"}, {"role": "assistant", "content": "종이입니다."}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two updates on conversations, on a small Qwen3 whose eos is not what its template ends turns with."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = make_tokenizer(*FAMILIES["Qwen3"])
    torch.manual_seed(0)
    config = small_config("qwen3", len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id])
    model.save_pretrained(folder / "base")
    save_tokenizer(tokenizer, folder / "base")
    rows = []
    for i in range(20):
        asked = [{"role": "user", "content": f"{i}번 벽지에 왜 곰팡이가 생기나요?"}]
        answered = [{"role": "assistant", "content": f"{i}번은 습기 때문입니다."}]
        rows.append({"messages": [*(TURNS if i % 2 else []), *asked, *answered]})
    (folder / "chat.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (folder / "r.yaml").write_text(RECIPE.format(base=folder / "base"), encoding="utf-8")
    done = run_script("scripts/prepare_data.py", folder / "chat.jsonl", "--out", folder / "data")
    assert done.returncode == 0, done.stderr
    trained = ("scripts/train.py", folder / "r.yaml", "--data", folder / "data", "--run", folder / "run")
    done = run_script(*trained, launch=True)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout, trained


def test_the_example_and_the_recipe_say_which_format_is_trained(run):
    folder, said, _ = run
    recipe = yaml.safe_load((folder / files.RECIPE).read_text(encoding="utf-8"))
    assert (recipe["prompt"], recipe["system_prompt"]) == ("chat", "짧게 답하세요.")
    example, _, learned = said.partition("between ⟦ and ⟧:\n")[2].partition("⟧")[0].partition("⟦")
    assert example.startswith("<|im_start|>system\n짧게 답하세요.<|im_end|>")
    assert "습기 때문입니다.<|im_end|>" in learned


def test_another_format_is_another_run(run):
    folder, _, trained = run
    done = run_script(*trained, "--prompt", "plain", "--system-prompt", "null")
    assert done.returncode == 2
    assert "prompt" in done.stderr
    assert (folder / files.ADAPTER).is_dir()


def test_asked_evaluated_and_exported_it_is_the_same_tokens(run, tmp_path):
    folder = run[0]
    exported = tmp_path / "out"
    done = run_script("scripts/export.py", "--run", folder, "--out", exported, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = files.read_jsonl(files.evaluation_dir(folder, "test", files.MERGED) / files.PREDICTIONS)
    assert all(bits is not None for row in rows for bits in row["reference_bits"])
    ours, theirs = load_tokenizer(folder / files.ADAPTER), load_tokenizer(exported)
    assert ours.chat_template == theirs.chat_template
    for context in ("", tuple((turn["role"], turn["content"]) for turn in TURNS)):
        messages = [*(TURNS if context else []), {"role": "user", "content": "왜 그런가요?"}]
        served = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encode_prompts(ours, [("왜 그런가요?", context)]) == [served]
    ends = files.read_json(exported / "generation_config.json")["eos_token_id"]
    assert ends == [theirs.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert "<|im_start|>user\n<질문><|im_end|>" in (exported / "README.md").read_text(encoding="utf-8")
    asked = [
        run_script("scripts/ask.py", *whose, "왜 그런가요?", "--max-new-tokens", "5")
        for whose in (
            ("--run", folder),
            ("--model", exported, "--base-precision", "fp32"),
        )
    ]
    assert [done.returncode for done in asked] == [0, 0], asked
    assert asked[0].stdout.splitlines()[-1] == asked[1].stdout.splitlines()[-1]


def test_a_conversation_at_the_prompt_keeps_its_turns_until_new(run):
    folder, *_ = run
    model, tokenizer = load_run(folder)
    settings = GenerationSettings(max_new_tokens=8)

    def answer(question, *earlier):
        return generate_answers(model, tokenizer, [(question, earlier)], settings, quiet=True)[0].text.strip()

    first, second = "벽지가 뭔가요?", "왜 곰팡이가 생기나요?"
    said = answer(first)
    after, alone = answer(second, ("user", first), ("assistant", said)), answer(second)
    assert said
    assert after != alone, "the turns before it change the answer"
    terminal = Terminal("--run", folder, "--max-new-tokens", "8")
    assert said in terminal.type(f"{first}\r")
    assert after in terminal.type(f"{second}\r")
    assert "/new" in terminal.type("/help\r")
    terminal.type("/new\r")
    assert alone in terminal.type(f"{second}\r")
    terminal.type("/quit\r")
    assert terminal.ended() == 0
