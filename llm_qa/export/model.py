"""Writes the exported folder: weights, config, generation config, tokenizer with its chat template, card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.export.checkpoint import WEIGHTS, read_tensors, staged_folder, tensor_names, weight_shards, write_shards
from llm_qa.export.merge import lora_updates, merged
from llm_qa.models.loading import (
    base_of_run,
    ends_of,
    finished_folder,
    load_run_tokenizer,
    run_recipe,
    save_tokenizer,
    with_own_ends,
)
from llm_qa.models.portable import add_rotary_keys
from llm_qa.models.references import references_files
from llm_qa.models.safety import refuse_unsafe_weights
from llm_qa.models.stored_names import loaded_names

SHARD_BYTES = 2 * 2**30
DTYPES = {"base": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Exported:
    """What was written: its folder, the bytes of its weights, and tensors of the base that no model has."""

    folder: Path
    weight_bytes: int
    left_out: list[str]


def export_model(
    run_dir: Path, out: Path, card: str, *, dtype: str = "base", shard_bytes: int = SHARD_BYTES
) -> Exported:
    """Write a finished run as a plain transformers folder to `out`, which must not be there; staged, then renamed.

    LoRA is merged into the weights of the base's own checkpoint, one tensor after another; a fully trained model is
    copied. `dtype` is a key of DTYPES, `base` for the numbers of the checkpoint. Host memory: one shard and one tensor
    in fp32. `card` is its README.md. A run with retrieval takes its references along.
    """
    recipe = run_recipe(run_dir)
    final = finished_folder(run_dir, recipe)
    is_lora = recipe.method == "lora"
    refuse_unsafe_weights(final, adapter=is_lora)
    source = base_of_run(run_dir, recipe) if is_lora else str(final)
    shards = weight_shards(source)
    config = config_of(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = tensor_names(shards)
    names = loaded_names(model, stored)
    check_complete(model, set(names.values()), source)
    updates = lora_updates(final, model) if is_lora else {}
    references = references_files(run_dir, recipe) if recipe.retrieval else []
    with staged_folder(out) as staged:
        size = write_shards(merged(read_tensors(shards), names, updates, DTYPES[dtype]), staged, shard_bytes)
        write_settings(
            staged, config, load_run_tokenizer(final, recipe), type(model).__name__, ends_of_checkpoint(source)
        )
        files.write_text(staged / "README.md", card)
        for path in references:
            files.write_bytes(staged / path.name, path.read_bytes())
    return Exported(out, size, sorted(set(stored) - set(names)))


def config_of(source: str) -> PretrainedConfig:
    """The checkpoint's own config; UserError for a base that is itself quantised."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"The base {source} is itself quantised, and LoRA is merged into 16-bit weights only: train on the base "
            "that it was made from (--model)."
        )
    return config


def check_complete(model: PreTrainedModel, found: set[str], source: str) -> None:
    """UserError where the checkpoint lacks weights, but for those that are another's alias (a tied head)."""
    aliases = set(getattr(model, "all_tied_weights_keys", None) or ())
    if lost := sorted(model.state_dict().keys() - found - aliases):
        raise UserError(f"{source} has no {lost[0]}: its weights are incomplete.")


def ends_of_checkpoint(source: str) -> list[int]:
    """The eos tokens of a checkpoint, of which chat models have several: those that answers of the loaded model have.

    As transformers loads them: of its generation config or, where it has none, of its config.
    """
    try:
        return ends_of(GenerationConfig.from_pretrained(source))
    except OSError:  # it has none
        return ends_of(GenerationConfig.from_model_config(config_of(source)))


def write_settings(folder: Path, config: PretrainedConfig, tokenizer, architecture: str, ends: list[int]) -> None:
    """Config, generation config and tokenizer. Answers are greedy and end with the tokenizer's eos, as in the run.

    A model with a chat template keeps the other `ends` of its base.
    """
    config.use_cache = True
    config.dtype = dtype_of(folder)
    config.architectures = [architecture]
    every = with_own_ends(tokenizer, ends)
    eos = every if len(every) > 1 else every[0]
    config.eos_token_id, config.pad_token_id = eos, tokenizer.pad_token_id
    config.save_pretrained(folder)
    add_rotary_keys(folder)
    ids = {"eos_token_id": eos, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    GenerationConfig(do_sample=False, **ids).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def dtype_of(folder: Path) -> torch.dtype:
    """The dtype of most numbers of a folder's weights."""
    counts: dict[torch.dtype, int] = {}
    path = folder / WEIGHTS
    for _, tensor in read_tensors([path] if path.is_file() else sorted(folder.glob("model-*.safetensors"))[:1]):
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])
