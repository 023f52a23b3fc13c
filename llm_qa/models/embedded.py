"""The embedded model: a small pretrained GPT-NeoX and its tokenizer, which come with the package.

It has the architecture of the 12.8B model (the same four linears, rotary on half of a head, parallel residual, untied
head), so every part of the project runs on it without a download: quantisation, LoRA, packing, saving, answering.
`scripts/pretrain_embedded.py` made it from Korean prose under open licences (its card: `embedded_model/README.md`), in
which no question stands with its answer. Weights are kept in 8 bits with a scale a row and expanded on first use.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llm_qa import files
from llm_qa.console import Failed, UserError
from llm_qa.data.plain_prompt import ANSWER_TAG, CONTEXT_TAG, QUESTION_TAG
from llm_qa.language import tr

EOS = "<|endoftext|>"
CONTEXT = 1024  # tokens
SHIPPED = Path(__file__).parent / "embedded_model"
WEIGHTS, CHECKSUMS = "model.safetensors", "checksums.json"
OF_TORCH = {"format": "pt"}  # which transformers asks a safetensors file for
SCALE = ".scale"  # of a matrix: what each of its rows is multiplied by
SMALL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}


def cache_folder() -> Path:
    """Where the expanded model is kept: $LLM_QA_CACHE, else ~/.cache/llm_qa."""
    return Path(os.environ.get("LLM_QA_CACHE") or Path.home() / ".cache" / "llm_qa")


def embedded_model(shipped: Path = SHIPPED) -> Path:
    """Folder of the embedded model in fp16, as transformers reads one: from the cache, else expanded in a second.

    Raises Failed where a shipped file is not what was shipped, UserError where the cache cannot be written to.
    """
    checksums = files.read_json(shipped / CHECKSUMS)
    folder = cache_folder() / f"embedded-{checksums[WEIGHTS][:16]}"
    if (folder / "config.json").is_file():
        return folder
    for name, expected in checksums.items():
        if (found := files.sha256_file(shipped / name)) != expected:
            raise Failed(
                tr(
                    "{path} is damaged (sha256 {found}, {expected} was shipped): install the package anew.",
                    path=shipped / name,
                    found=found[:12],
                    expected=expected[:12],
                )
            )
    staged = folder.with_name(f".{folder.name}.{os.urandom(8).hex()}.part")
    try:
        staged.mkdir(parents=True)
        for name in checksums.keys() - {WEIGHTS}:
            shutil.copyfile(shipped / name, staged / name)
        save_file(expand(load_file(shipped / WEIGHTS)), staged / WEIGHTS, metadata=OF_TORCH)
        put_in_place(staged, folder)
    except OSError as error:
        raise UserError(
            tr(
                "The embedded model cannot be kept in {folder} ({error}): set LLM_QA_CACHE to a "
                "folder that can be written to.",
                folder=folder.parent,
                error=error.strerror or error,
            )
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def put_in_place(staged: Path, folder: Path) -> None:
    """Rename an expanded model to its folder. One that another process put there first is kept: it may be in use."""
    try:
        os.replace(staged, folder)
    except OSError:
        if not (folder / "config.json").is_file():
            shutil.rmtree(folder)
            os.replace(staged, folder)


def shrink(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices (rows, columns) as int8 with an fp16 scale a row, off by 1/254 of a row's largest; all else in fp16."""
    small = {}
    for name, weight in weights.items():
        if weight.dim() == 2:
            scale = (weight.float().abs().amax(1) / 127).clamp(min=1e-7).half()
            small[name] = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
            small[name + SCALE] = scale
        else:
            small[name] = weight.half()
    return small


def expand(small: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of `shrink` in fp16. The products are exact in fp32, so that the result is the same everywhere."""
    return {
        name: (weight.float() * small[name + SCALE].float()[:, None]).half() if weight.dtype == torch.int8 else weight
        for name, weight in small.items()
        if not name.endswith(SCALE)
    }


def ship(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path = SHIPPED) -> Path:
    """Write a model and its tokenizer as the package keeps them, with their checksums; returns the folder."""
    from llm_qa.models.loading import save_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.float16
    model.config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(shrink(weights), folder / WEIGHTS, metadata=OF_TORCH)
    shipped = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    checksums = {path.name: files.sha256_file(path) for path in shipped if path.name != CHECKSUMS}
    files.write_json(folder / CHECKSUMS, checksums)
    return folder


def embedded_config() -> GPTNeoXConfig:
    """The config of the embedded model."""
    return AutoConfig.from_pretrained(SHIPPED, trust_remote_code=False)


def build_tokenizer(texts: list[str], vocabulary: int = 1024, digits_alone: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text round-trips; the prompt's tags are in its training text."""
    core = Tokenizer(models.BPE())
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of_words]) if digits_alone else bytes_of_words
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tags = [f"{CONTEXT_TAG} \n\n{QUESTION_TAG} \n\n{ANSWER_TAG} "] * 100
    core.train_from_iterator([*(f" {text}" for text in texts), *tags], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=EOS, eos_token=EOS, pad_token=EOS, model_max_length=CONTEXT
    )


def model_config(vocabulary: int, eos_token_id: int, shape: dict[str, int] | None = None) -> GPTNeoXConfig:
    """A GPT-NeoX config as the embedded model's, dropout off, of a `shape` (SMALL)."""
    return GPTNeoXConfig(
        vocab_size=-(-vocabulary // 64) * 64,
        max_position_embeddings=CONTEXT,
        rotary_pct=0.5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        use_cache=False,
        **(shape or SMALL),
    )


def new_model(vocabulary: int, eos_token_id: int, width: int, layers: int) -> GPTNeoXForCausalLM:
    """An untrained model with heads of 64."""
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    return GPTNeoXForCausalLM(model_config(vocabulary, eos_token_id, {**shape, "intermediate_size": 4 * width}))
