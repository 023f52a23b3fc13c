"""Makes ZeRO-3 gather one decoder layer at a time and prefetch the next.

A decoder layer becomes a leaf module: DeepSpeed gathers all of it at once when its forward or backward pass begins,
instead of each matrix in a call of its own. accelerate_configs/README.md has the reasons and measurements.
"""

from __future__ import annotations

import torch

from llm_qa.console import say
from llm_qa.language import tr

PREFETCH = "stage3_prefetch_bucket_size"


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder layers of a model, plain or with LoRA: the modules that transformers says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def elements(module: torch.nn.Module) -> int:
    """Elements of a module's parameters; a partitioned one is empty and has its whole size in ds_numel."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in module.parameters())


def gather_by_layer(model: torch.nn.Module, config: dict) -> None:
    """Make a model's decoder layers leaf modules, and let DeepSpeed prefetch one where `config` says "auto".

    Must be called before the engine is made.
    """
    from deepspeed.utils import set_z3_leaf_modules

    layers = decoder_layers(model)
    if not layers:
        say(
            tr(
                "ZeRO-3: transformers names no decoder layer of {kind}, so each matrix is gathered alone",
                kind=type(model).__name__,
            )
        )
        return
    set_z3_leaf_modules(model, sorted({type(layer).__name__ for layer in layers}))
    # DeepSpeed reads a leaf module's gradients when that of its input is ready. Where the input needs none, that would
    # be before they are computed.
    model.enable_input_require_grads()
    zero = config["zero_optimization"]
    if zero.get(PREFETCH, "auto") == "auto":
        zero[PREFETCH] = max(map(elements, layers))
