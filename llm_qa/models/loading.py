"""Tokenizer, base and adapter from a recipe or a finished run. Safetensors only; no code from a checkpoint runs."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file, is_protobuf_available, is_sentencepiece_available

from llm_qa import files
from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe, load_stored_recipe
from llm_qa.console import UserError, say
from llm_qa.data.chat import choose_prompt, uses_chat
from llm_qa.language import later, tr
from llm_qa.models.fast.ops.fp8 import quantize_fp8
from llm_qa.models.isolation import attention_of
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.precision import Precision, gpu_capability, resolve_precision
from llm_qa.models.registry import SPECIAL_TOKENS
from llm_qa.models.safety import refuse_code, refuse_unsafe_weights

EMBEDDED_BASE = "base"  # runs/<name>/base/: a run on the embedded model carries it


def _load(load, model: str, what: str):
    """Call a from_pretrained; an error of the checkpoint becomes a UserError of one sentence."""
    try:
        return load()
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # safetensors, tokenizers and huggingface_hub each have errors of their own
        first_line = (str(error).strip() or tr("no reason given")).splitlines()[0].rstrip(".:")
        if not isinstance(error, (OSError, ValueError, ImportError)):
            first_line = f"{type(error).__name__}, {first_line}"
        raise UserError(
            tr(
                "The {what} of model {model!r} cannot be loaded: {first_line}. Check --model.",
                what=tr(what),
                model=model,
                first_line=first_line,
            )
        ) from error


def load_tokenizer(model: str | Path, *, only_local: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a hub id or a folder, with an eos and a pad token.

    A tokenizer.json is used unchanged: for some declared classes transformers 5 would rebuild its pre-tokenizer.
    `only_local` downloads nothing.
    Raises UserError when there is none or it has no eos.
    """
    model = str(model)
    if Path(model).is_dir():
        refuse_code(model)
    specials = SPECIAL_TOKENS.get(model, {})

    def load():
        place = {"local_files_only": only_local}
        has_json, has_model = (
            cached_file(model, name, _raise_exceptions_for_missing_entries=False, **place)
            for name in ("tokenizer.json", "tokenizer.model")
        )
        if has_model and not has_json and not (is_sentencepiece_available() and is_protobuf_available()):
            raise UserError(  # transformers would ask for tiktoken, which cannot read it
                tr(
                    "The tokenizer of model {model!r} is a SentencePiece tokenizer.model without a "
                    "tokenizer.json, which two more packages can read: pip install sentencepiece "
                    "protobuf.",
                    model=model,
                )
            )
        kind = PreTrainedTokenizerFast if has_json else AutoTokenizer
        return kind.from_pretrained(model, trust_remote_code=False, **place, **specials)

    quiet = logging.getLogger("transformers.tokenization_utils_base")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # "class you load ... not the same type" is intended, see above
    try:
        tokenizer = _load(load, model, later("tokenizer"))
    finally:
        quiet.setLevel(level)
    if tokenizer.eos_token_id is None:
        raise UserError(
            tr(
                "The tokenizer of model {model!r} has no eos token, so no answer could be trained "
                "to end: change --model.",
                model=model,
            )
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # labels are masked by length, never by this id
    return tokenizer


def check_tokenizer_fits(tokenizer, model: PreTrainedModel) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings (KoGPT2's beside polyglot's weights)."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            tr(
                "The tokenizer has {tokens:,} tokens and the model only {rows:,} embeddings: they "
                "do not belong together.",
                tokens=len(tokenizer),
                rows=rows,
            )
        )


def align_special_tokens(model: PreTrainedModel, tokenizer) -> None:
    """Set the model's special tokens to the tokenizer's, with which answers end and are padded.

    Trainer would do it too, with a warning for each process. The generation config keeps all `end_tokens`.
    """
    ends = end_tokens(model, tokenizer)
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        if tokenizer.bos_token_id is not None:
            config.bos_token_id = tokenizer.bos_token_id
    if len(ends) > 1:
        model.generation_config.eos_token_id = ends


def end_tokens(model: PreTrainedModel | PeftModel, tokenizer) -> list[int]:
    """Token ids that end an answer, the tokenizer's eos first; a model that chats may have more in its configs."""
    return with_own_ends(tokenizer, ends_of(model.generation_config))


def ends_of(config: GenerationConfig) -> list[int]:
    """The eos tokens of a generation config."""
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends] if ends is not None else []


def with_own_ends(tokenizer, ends: list[int]) -> list[int]:
    """The tokenizer's eos and, where it has a chat template, the other `ends` of its model."""
    return list(dict.fromkeys([tokenizer.eos_token_id, *(ends if uses_chat(tokenizer) else [])]))


def load_base(model: str | Path, precision: Precision, *, on_gpu: bool = True) -> PreTrainedModel:
    """The base model in the decided precision, with the generation cache off.

    `on_gpu` loads the weights directly to this process's GPU where there is one; under ZeRO-3 it must be False, as
    DeepSpeed partitions them while they are loaded (KoAlpaca#107). Attention is sdpa, or else the architecture's own,
    which is reported.
    """
    if Path(model).is_dir():
        refuse_unsafe_weights(model)
    config = _load(lambda: AutoConfig.from_pretrained(str(model), trust_remote_code=False), str(model), later("config"))
    attention = attention_of(config)
    if not attention.usual:
        say(attention.report)
    place = {"device_map": {"": torch.cuda.current_device()}} if on_gpu and torch.cuda.is_available() else {}
    base = _load(
        lambda: AutoModelForCausalLM.from_pretrained(
            str(model),
            dtype=precision.weights,
            quantization_config=precision.quantization_config,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention.implementation,
            **place,
        ),
        str(model),
        "weights",
    )
    if precision.fp8_weights:
        quantize_fp8(base, linear_layers(base))
    for module in base.modules():
        # On CPUs with AVX512-BF16, bitsandbytes' Linear4bit permanently repacks its weight at the first forward pass in
        # eval mode, for a bf16 kernel without a backward pass: after one validation, training would have no gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # generate() would take whatever is missing in its arguments from here: a penalty of repetitions, say.
    base.generation_config = GenerationConfig(eos_token_id=ends_of(base.generation_config) or None)
    base.config.use_cache = False  # a cache would let packed documents attend to each other
    return base


def save_tokenizer(tokenizer, folder: str | Path) -> None:
    """Save with a class name that transformers 4 reads too (transformers#47553); may go with version 4."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = files.read_json(path)
    if config.get("tokenizer_class") == "TokenizersBackend":
        files.write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def run_recipe(run_dir: str | Path) -> Recipe:
    """The resolved recipe of a run; UserError when the folder is not a run."""
    files.check_run(run_dir)
    return load_stored_recipe(Path(run_dir) / files.RECIPE)


def base_of_run(run_dir: str | Path, recipe: Recipe) -> str:
    """Where the untuned weights of a run come from: a hub id, a folder, or the run's own copy of the embedded model."""
    if recipe.model == EMBEDDED_MODEL:
        return str(Path(run_dir) / EMBEDDED_BASE)
    return str(files.found_from(recipe.model, run_dir))


def final_folder(run_dir: str | Path, recipe: Recipe) -> Path:
    """Where a run's final weights lie: adapter/ or model/."""
    return Path(run_dir) / (files.ADAPTER if recipe.method == "lora" else files.MODEL)


def finished_folder(run_dir: str | Path, recipe: Recipe) -> Path:
    """`final_folder` of a run that is finished; UserError for one that is not."""
    final = final_folder(run_dir, recipe)
    if not final.is_dir():
        raise UserError(
            tr(
                "{run_dir} has no {folder}/ yet: its training has not finished. Run the same train command.",
                run_dir=run_dir,
                folder=final.name,
            )
        )
    return final


def load_run_tokenizer(final: str | Path, recipe: Recipe) -> PreTrainedTokenizerFast:
    """The tokenizer of a run's final folder, with the prompt format that the run was trained with.

    Folders of earlier versions carry the base's own chat template, although the plain prompt was trained.
    """
    tokenizer = load_tokenizer(final)
    if recipe.prompt == "plain":
        choose_prompt(tokenizer, recipe.prompt)
    return tokenizer


def load_run(run_dir: str | Path, *, base: bool = False) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
    """A finished run's model, ready to answer, and its tokenizer; `base` gives the untuned weights of a full run.

    For a LoRA run the adapter sits on the base in the recipe's precision; with `model.disable_adapter()` it is the
    base. Raises UserError when the run has no final weights yet.
    """
    run_dir, recipe = Path(run_dir), run_recipe(run_dir)
    final = finished_folder(run_dir, recipe)
    if recipe.method == "lora":
        refuse_unsafe_weights(final, adapter=True)
    precision = resolve_precision(recipe, gpu_capability())
    source = base_of_run(run_dir, recipe) if recipe.method == "lora" or base else str(final)
    model = load_base(source, precision)
    if recipe.method == "lora":
        model = _load(
            lambda: PeftModel.from_pretrained(model, str(final), use_safetensors=True), str(final), later("adapter")
        )
    tokenizer = load_run_tokenizer(final, recipe)
    check_tokenizer_fits(tokenizer, model)
    align_special_tokens(model, tokenizer)
    if torch.cuda.is_available():
        model.to("cuda")
    return model.eval(), tokenizer
