"""What ZeRO-3 gathers at once, decided from the model: a decoder layer at a time, one layer ahead.

A decoder layer is a leaf module: DeepSpeed gathers all of it in one piece when its forward or backward pass begins,
instead of each matrix in a call of its own. accelerate_configs/README.md has the reasons and what they bring.
"""

from __future__ import annotations

import torch

from llm_qa.console import say

PREFETCH = "stage3_prefetch_bucket_size"


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder layers of a model, plain or with LoRA: what transformers says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def elements(module: torch.nn.Module) -> int:
    """Elements of a module's whole parameters, which ZeRO-3 may keep as empty ones with the size beside them."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in module.parameters())


def gather_by_layer(model: torch.nn.Module, config: dict) -> None:
    """Make leaf modules of a model's decoder layers, and let DeepSpeed fetch one ahead where `config` says "auto".

    Must be called before the engine is made.
    """
    from deepspeed.utils import set_z3_leaf_modules

    layers = decoder_layers(model)
    if not layers:
        say(f"ZeRO-3: transformers names no decoder layer of {type(model).__name__}, so each matrix is gathered alone")
        return
    set_z3_leaf_modules(model, sorted({type(layer).__name__ for layer in layers}))
    # DeepSpeed takes a leaf module's gradients when its input's is there; without one, before they are computed.
    model.enable_input_require_grads()
    zero = config["zero_optimization"]
    if zero.get(PREFETCH, "auto") == "auto":
        zero[PREFETCH] = max(map(elements, layers))
