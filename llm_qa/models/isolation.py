"""Whether documents packed into one sequence attend to each other, tested on a small model of the same architecture.

Packing relies on `position_ids` that restart with every document: for most architectures transformers builds a
block-diagonal attention mask from them. Others silently ignore it: some carry a state through the whole
sequence (LFM2, Qwen3-Next), some use the attention mask alone (Falcon, OPT, BLOOM). Hence an experiment with a model of
the same class and widths that has only the first layers, random weights and a small vocabulary. It needs only the
config of a checkpoint, so it runs before the data is packed, and its result is the same in every precision, with and
without LoRA, and under ZeRO-3, where no process holds a whole weight.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from llm_qa.console import UserError
from llm_qa.data.packing import collate_packs
from llm_qa.language import tr

DOCUMENTS = (9, 7, 8)  # tokens of each document of the experiment
VOCABULARY = 128  # tokens
ROUNDING = 1e-2  # share of the logits' standard deviation: fp32 rounds by 1e-5, and a leak differs by more than 1
SEED = 0


@dataclass(frozen=True)
class Attention:
    """The attention implementation of an architecture, and whether it keeps packed documents apart."""

    implementation: str  # transformers' name: "sdpa", or "eager" where the architecture has no other
    isolates: bool
    report: str  # one line for the user

    @property
    def usual(self) -> bool:
        """True where the architecture needs no special treatment: sdpa, and packed documents stay apart."""
        return self.implementation == "sdpa" and self.isolates


_known: dict[str, Attention] = {}  # by class and config
_CHANGED_BY_LOADING = ("use_cache", "dtype", "eos_token_id", "pad_token_id", "quantization_config")


def attention_of(config: PreTrainedConfig) -> Attention:
    """Which attention implementation the causal LM of this config runs with, and whether packed documents stay apart.

    The implementation is sdpa, or eager where the architecture has no sdpa. The experiment is a forward pass of a few
    dozen tokens in fp32 through a few layers, on this process's GPU where there is one; its result is cached. Random
    states are not changed. Where no small model can be built, packing is not used. Raises UserError where padding on
    the right changes the logits of a document in a row of its own, which is how it would be trained and scored: such a
    model attends to later tokens or does not take positions from `position_ids`.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise UserError(
            tr(
                "The model type {model_type!r} is not a causal language model: change --model.",
                model_type=config.model_type,
            )
        )
    values = {name: value for name, value in config.to_dict().items() if name not in _CHANGED_BY_LOADING}
    key = f"{kind.__name__} {json.dumps(values, sort_keys=True, default=str)}"
    if key not in _known:
        _known[key] = _experiment(kind, config)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the model that is loaded next may need all of it
    return _known[key]


def few_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy with the first layers alone, as many as have one of each kind in them, and VOCABULARY tokens."""
    small = copy.deepcopy(config)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    small._attn_implementation = None  # transformers then takes sdpa where the architecture has it, else eager
    text = small.get_text_config(decoder=True)
    for part in {id(part): part for part in (small, text)}.values():
        part.dtype = torch.float32
        part.use_cache = False  # a cache would make documents attend to each other in every architecture
        part.pad_token_id = None  # it may lie beyond the small vocabulary
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    layers = text.num_hidden_layers
    lists = {name: value for name, value in text.to_dict().items() if isinstance(value, list) and len(value) == layers}
    kinds = list(zip(_layer_modules(small, layers), *lists.values(), strict=True))
    text.num_hidden_layers = 1 + max(kinds.index(kind) for kind in kinds)
    for name, values in lists.items():
        setattr(text, name, values[: text.num_hidden_layers])
    return small


def _layer_modules(config: PreTrainedConfig, layers: int) -> list[tuple[str, ...]]:
    """The module classes of each layer, by which layers of different kinds are found where the config lists none."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](copy.deepcopy(config))
    stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers]
    return [tuple(type(m).__name__ for stack in stacks for m in stack[i].modules()) for i in range(layers)]


def _experiment(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Attention:
    """Compare logits of documents packed in one row, and of each in a padded row, with those of each alone."""
    name = kind.__name__
    try:
        model = _random_model(kind, few_layers(config))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each architecture rejects a config with errors of its own
        implementation = "sdpa" if kind._supports_sdpa else "eager"
        told = tr(
            "attention: {implementation}; whether packed documents stay apart could not be tested on a small {name} "
            "({error})",
            implementation=implementation,
            name=name,
            error=_first_line(error),
        )
        return Attention(implementation, False, told)
    documents = _documents(model)
    try:
        alone = [_logits(model, [document])[0] for document in documents]
        packed, padded = _logits(model, [_joined(documents)])[0], _logits(model, documents)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            tr(
                "{name} cannot be trained or scored here: a small model of its kind does not take "
                "a batch of tokens and position_ids ({error}). Choose another --model.",
                name=name,
                error=_first_line(error),
            )
        ) from error
    if not _same(padded, alone):
        raise UserError(
            tr(
                "{name} cannot be trained or scored here: padding after a document changes the "
                "document's logits. Choose another --model.",
                name=name,
            )
        )
    implementation = model.config._attn_implementation
    isolates = _same(list(packed.split(DOCUMENTS)), alone)
    why = "" if implementation == "sdpa" else tr(", as {name} has no sdpa", name=name)
    told = tr("packed documents stay apart" if isolates else "packed documents would attend to each other")
    report = tr(
        "attention: {implementation}{why}; {told} (tested on a small {name})",
        implementation=implementation,
        why=why,
        told=told,
        name=name,
    )
    return Attention(implementation, isolates, report)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(".:")[:200]


def _random_model(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The class itself is called, not `from_config`, whose weights DeepSpeed would partition.

    The random weights are large, so that every layer changes its input noticeably; the usual initialisation is too
    small.
    """
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(gpus), torch.device("cuda", gpus[0]) if gpus else torch.device("cpu"):
        torch.manual_seed(SEED)
        model = kind(config).float().eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model


def _documents(model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(SEED)
    size = model.get_input_embeddings().num_embeddings
    drawn = [torch.randint(size, (length,), generator=generator) for length in DOCUMENTS]
    return [{"input_ids": ids, "position_ids": torch.arange(len(ids)), "labels": ids} for ids in drawn]


def _joined(documents: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([document[key] for document in documents]) for key in documents[0]}


@torch.no_grad()
def _logits(model: PreTrainedModel, rows: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """The logits of each row, (its tokens, vocabulary), in a batch collated as for training."""
    batch = {key: value.to(model.device) for key, value in collate_packs(rows, pad_token_id=0).items()}
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    return [row[: len(given["labels"])] for row, given in zip(logits, rows, strict=True)]


def _same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """True when logits differ by no more than rounding."""
    pairs = zip(some, others, strict=True)
    return all(((one - other).abs().max() <= ROUNDING * other.std()).item() for one, other in pairs)
