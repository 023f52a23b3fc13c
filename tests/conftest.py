"""Small checkpoints on disk, made once a session: the real loading code runs on them without a network."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from llm_qa import files
from llm_qa.data.records import QARecord
from llm_qa.language import ENGLISH, VARIABLE
from llm_qa.models.embedded import build_tokenizer
from llm_qa.models.loading import save_tokenizer


def pytest_configure() -> None:
    """No test reaches for the network; two workers share two cores; English whatever the machine's locale."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ[VARIABLE] = ENGLISH
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _english(monkeypatch) -> None:
    """A test that chooses Korean leaves the next one in English."""
    monkeypatch.setenv(VARIABLE, ENGLISH)


STARTERS = {"run_script", "subprocess", "ForkServer", "in_a_child", "start_child", "expect_browser", "sync_playwright"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of files that start commands or processes are marked, so that `make quick` can leave them out.

    They come first, as they are the long ones: the last tests are short, and two workers end at about the same time.
    """
    for item in items:
        if isinstance(item, pytest.Function) and STARTERS & vars(item.module).keys():
            item.add_marker("starts")
    items.sort(key=lambda item: item.get_closest_marker("starts") is None)


WORDS = (
    "벽지가 들뜨면 풀을 다시 바릅니다",
    "결로는 환기로 줄입니다",
    "마루는 7일 말린 뒤 깝니다",
    "석고보드를 덧대지 않습니다",
)


@pytest.fixture(scope="session")
def records() -> list[QARecord]:
    """Twenty records of two questions and two answers of uneven length, in two categories."""
    return [
        QARecord(
            id=f"R{i:02d}",
            questions=(f"{WORDS[i % 4]} {i}번 맞나요?", f"{i}번은 어떻게 하나요?"),
            answers=(f"{WORDS[(i + 1) % 4]} {i}.", " ".join(WORDS[: 1 + i % 4]) + f" 그리고 {i}도 봅니다."),
            category=("마감재", "시공")[i % 2],
        )
        for i in range(20)
    ]


@pytest.fixture(scope="session")
def tokenizer(records):
    """A byte-level tokenizer of the records."""
    return build_tokenizer([text for record in records for text in (*record.questions, *record.answers)])


@pytest.fixture(scope="session")
def neox_folder(tmp_path_factory, tokenizer) -> Path:
    """A random GPT-NeoX of two layers with its tokenizer, as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("neox")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=512,
        rotary_pct=0.5,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory, tokenizer) -> Path:
    """A random GPT-2 (KoGPT2's architecture: Conv1D, tied head) with its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory, neox_folder, tokenizer):
    """A run with an adapter that changes the answers."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    lora = LoraConfig(r=8, lora_alpha=64, target_modules=["query_key_value", "dense"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(neox_folder), lora).save_pretrained(folder / files.ADAPTER)
    save_tokenizer(tokenizer, folder / files.ADAPTER)
    recipe = {"model": str(neox_folder), "method": "lora", "base_precision": "fp32"}
    files.write_text(folder / files.RECIPE, yaml.safe_dump(recipe))
    return folder
