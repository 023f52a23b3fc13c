"""Which linear layers LoRA adapts: all but the output head.

The head is found by identity (`get_output_embeddings()`), not by name: GPT-NeoX's was called `embed_out` in
transformers 4 and is `lm_head` in 5. bitsandbytes' Linear4bit and Linear8bitLt are subclasses of nn.Linear, so the same
search works on a quantised model and on a plain one.
"""

from __future__ import annotations

import torch
from transformers.pytorch_utils import Conv1D

from llm_qa.console import UserError
from llm_qa.language import tr


def text_tower(model: torch.nn.Module) -> torch.nn.Module:
    """The language model inside one that also reads pictures or sound (Gemma 3), whose config nests a `text_config`.

    Any other model is returned itself.
    """
    config = getattr(model, "config", None)
    if config is None or config.get_text_config(decoder=True) is config:
        return model
    return model.get_decoder()


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Full name -> module of every linear layer (Linear, Linear4bit, Linear8bitLt, GPT-2's Conv1D) but the head.

    Of a model with several towers only the text tower's: no question reaches the others. `model` may also be a part of
    one, which has no head.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tower = set(text_tower(model).modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module in tower and module is not head
    }


def find_linear_modules(model: torch.nn.Module, wanted: list[str] | None = None) -> list[str]:
    """Names for LoRA's `target_modules`: the last part of each linear layer's name, sorted, each once.

    `wanted` narrows them. Raises UserError when nothing is left, or when a short name would also match the head.
    """
    layers = linear_layers(model)
    names = sorted({name.rpartition(".")[2] for name in layers})
    if not names:
        raise UserError(
            tr(
                "{kind} has no linear layer (torch.nn.Linear or Conv1D) besides its output head, "
                "so LoRA has nothing to adapt: set --method full.",
                kind=type(model).__name__,
            )
        )
    if wanted is not None:
        if unknown := sorted(set(wanted) - set(names)):
            raise UserError(
                tr(
                    "lora_targets {unknown}: {kind} has no such linear layers; it has {names}.",
                    unknown=", ".join(unknown),
                    kind=type(model).__name__,
                    names=", ".join(names),
                )
            )
        names = sorted(set(wanted))
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head and name.rpartition(".")[2] in names:
            raise UserError(
                tr(
                    "The head {name} has the same short name as a linear layer of {kind}: name the "
                    "layers to adapt with --lora-targets.",
                    name=name,
                    kind=type(model).__name__,
                )
            )
    return names
