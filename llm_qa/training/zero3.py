"""What ZeRO-3 gathers at once, decided from the model: the values of ds_configs/zero3*.json that say "auto".

A decoder layer is a leaf module: DeepSpeed gathers all of it in one piece when its forward or backward pass begins,
instead of each small matrix in a call of its own. accelerate_configs/README.md explains the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llm_qa.console import say

PERSISTENCE, PREFETCH = "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"


@dataclass(frozen=True)
class Gathering:
    """Classes of the decoder layers; the largest tensor that stays whole; what is fetched ahead, both in elements."""

    layer_classes: tuple[str, ...]
    persistent: int
    prefetched: int


def elements(parameter: torch.nn.Parameter) -> int:
    """Elements of a whole parameter, which ZeRO-3 may keep as an empty one with the size beside it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def choose_gathering(model: torch.nn.Module) -> Gathering | None:
    """How the layers of a model, plain or with LoRA, are gathered; None where transformers names no layer of it.

    Norms, biases and LoRA's factors stay whole on every GPU: together less than a hundredth of the weights, and each
    would need a gather, which takes as long for a small tensor as for one a hundred times as large. One layer is
    fetched while the one before it computes.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        return None
    small = [
        elements(parameter)
        for name, parameter in layers[0].named_parameters()
        if ".lora_" in name or len(getattr(parameter, "ds_shape", parameter.shape)) == 1
    ]
    classes = tuple(sorted({type(layer).__name__ for layer in layers}))
    largest = max(sum(map(elements, layer.parameters())) for layer in layers)
    return Gathering(classes, max(small, default=0), largest)


def gather_by_layer(model: torch.nn.Module, config: dict) -> None:
    """Make leaf modules of a model's decoder layers, and fill in what the DeepSpeed `config` leaves to the model.

    A value that the config states itself is kept. Must be called before the engine is made.
    """
    from deepspeed.utils import set_z3_leaf_modules

    gathering = choose_gathering(model)
    if gathering is None:
        say(f"ZeRO-3: transformers names no decoder layer of {type(model).__name__}, so each matrix is gathered alone")
        return
    set_z3_leaf_modules(model, list(gathering.layer_classes))
    # DeepSpeed takes a leaf module's gradients when its input's is there; without one, before they are computed.
    model.enable_input_require_grads()
    zero = config["zero_optimization"]
    for key, value in ((PERSISTENCE, gathering.persistent), (PREFETCH, gathering.prefetched)):
        if zero.get(key, "auto") == "auto":
            zero[key] = value
