"""The embedded model: a small GPT-NeoX and a byte-level BPE tokenizer, built from the training records.

It has the architecture of the 12.8B model (the same four linears, rotary on half of a head, parallel residual, untied
head), so every part of the project runs on it without a download: quantisation, LoRA, packing, saving, answering. It is
first trained briefly as a plain language model on paragraphs of answers, never on question-answer pairs, so that
fine-tuning can improve it. It is built from training records only, never from validation or test records.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from llm_qa.console import UserError, progress, say
from llm_qa.data.prompts import ANSWER_TAG, CONTEXT_TAG, QUESTION_TAG
from llm_qa.data.records import QARecord
from llm_qa.data.tokenization import encode_texts

EOS = "<|endoftext|>"
VERSION = 1  # to be raised when anything below changes the built model; part of the cache key
VOCABULARY = 1024  # tokens, at most
SHAPE = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}
CONTEXT = 1024  # tokens
STEPS, ROWS, ROW_LENGTH, LEARNING_RATE = 120, 16, 96, 3e-3  # of the brief language-model training
RECORDS_A_DOCUMENT = 8
DROPOUT = 0.1  # of that training only


def cache_folder() -> Path:
    """Where built models are kept: $LLM_QA_CACHE, else ~/.cache/llm_qa."""
    return Path(os.environ.get("LLM_QA_CACHE") or Path.home() / ".cache" / "llm_qa")


def documents(records: Iterable[QARecord]) -> list[str]:
    """Texts of the plain language model: contexts and answers as prose, RECORDS_A_DOCUMENT records in each.

    They have no question, no prompt tag and no question-answer pair: the format of a prompt and where an answer ends
    are left to fine-tuning, as with a real base model.
    """
    prose = [" ".join(text for text in (record.context, *record.answers) if text) for record in records]
    return [
        "\n".join(dict.fromkeys(prose[i : i + RECORDS_A_DOCUMENT])) for i in range(0, len(prose), RECORDS_A_DOCUMENT)
    ]


def embedded_model(records: Iterable[QARecord]) -> Path:
    """Folder of the embedded model for these records: from the cache, else built (under 90 s on 2 cores).

    Raises UserError where the cache cannot be written to.
    """
    texts = documents(records)
    settings = [VERSION, VOCABULARY, SHAPE, CONTEXT, STEPS, ROWS, ROW_LENGTH, LEARNING_RATE, DROPOUT]
    key = hashlib.sha256(json.dumps([settings, texts], ensure_ascii=False).encode()).hexdigest()[:16]
    folder = cache_folder() / f"embedded-{key}"
    if (folder / "config.json").is_file():
        say(f"embedded model: from the cache, {folder}")
        return folder
    say(f"embedded model: building a small GPT-NeoX from the training records' texts, {len(texts):,} documents")
    staged = folder.with_name(f".{folder.name}.{os.urandom(8).hex()}.part")
    try:
        staged.mkdir(parents=True)  # before the model is trained
        build(texts, staged)
        put_in_place(staged, folder)
    except OSError as error:
        raise UserError(
            f"The embedded model cannot be kept in {folder.parent} ({error.strerror or error}): set LLM_QA_CACHE to a "
            "folder that can be written to."
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def put_in_place(staged: Path, folder: Path) -> None:
    """Rename a built model to its folder. One that another process put there first is kept: it may be in use."""
    try:
        os.replace(staged, folder)
    except OSError:
        if not (folder / "config.json").is_file():
            shutil.rmtree(folder)
            os.replace(staged, folder)


def build(texts: list[str], folder: Path) -> None:
    """Train tokenizer and model on `texts`, deterministically, and save both to `folder`."""
    from llm_qa.models.loading import save_tokenizer

    tokenizer = build_tokenizer(texts)
    model = train_language_model(texts, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text round-trips; the prompt's tags are in its training text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tags = [f"{CONTEXT_TAG} \n\n{QUESTION_TAG} \n\n{ANSWER_TAG} "] * 100
    core.train_from_iterator([*(f" {text}" for text in texts), *tags], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=EOS, eos_token=EOS, pad_token=EOS, model_max_length=CONTEXT
    )


def model_config(vocabulary: int, eos_token_id: int) -> GPTNeoXConfig:
    """The embedded model's config, dropout off."""
    return GPTNeoXConfig(
        vocab_size=-(-vocabulary // 64) * 64,
        max_position_embeddings=CONTEXT,
        rotary_pct=0.5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        use_cache=False,
        **SHAPE,
    )


def train_language_model(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> GPTNeoXForCausalLM:
    """A brief plain language-model training on shuffled single texts, on the CPU in fp32; returns it in eval mode."""
    stream = torch.cat(
        [
            torch.tensor([*ids, tokenizer.eos_token_id])
            for ids in encode_texts(tokenizer, [f" {text}" for text in texts])
        ]
    )
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(model_config(len(tokenizer), tokenizer.eos_token_id)).train()
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.p = DROPOUT
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    last_start = max(1, len(stream) - ROW_LENGTH)
    for _ in progress(range(STEPS), what="embedded model", unit="steps"):
        starts = torch.randint(last_start, (ROWS,))
        rows = torch.stack([stream[torch.arange(s, s + ROW_LENGTH) % len(stream)] for s in starts.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    torch.set_rng_state(state)
    say(f"embedded model: language-model loss {loss.item():.2f} after {STEPS} steps")
    for module in dropouts:
        module.p = 0.0
    return model.eval()
