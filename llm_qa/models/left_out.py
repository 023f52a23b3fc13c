"""Which weights of a base quantisation or LoRA leaves out, and their share of all weights.

bitsandbytes quantises only `torch.nn.Linear` and `Conv1D`, and LoRA adapts only linear layers. The fused experts of a
mixture of experts are parameters of another kind of module (Mixtral, Qwen3-MoE), and Falcon has a linear layer of its
own class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import torch

from llm_qa.config.recipe import Recipe
from llm_qa.language import tr
from llm_qa.models.fast.ops.fp8 import Fp8Linear
from llm_qa.models.lora import count_parameters
from llm_qa.models.precision import SHORT, Precision

MODULES_NAMED = 3


def left_out_report(model: torch.nn.Module, recipe: Recipe, precision: Precision) -> list[str]:
    """Lines about weights that are not quantised though the recipe asks for it, and about those without LoRA, if any.

    `model` is the loaded base, with LoRA on it for method lora. Embeddings and the head count as part of the whole, but
    not as left out: they are never quantised or adapted. Layers that `lora_targets` leaves out were left out by name.
    """
    lines = []
    if precision.nf4 or precision.fp8_weights:
        kept = {"base": precision.base, "dtype": SHORT[precision.weights]}
        what = tr("not quantised to {base}, but kept in {dtype}", **kept)
        lines += _line(model, what, lambda _, module: _quantised(module))
    if recipe.method == "lora" and recipe.lora_targets is None:
        lines += _line(model, tr("not adapted by LoRA"), lambda name, _: name.endswith(".base_layer"))
    return lines


def _line(model: torch.nn.Module, what: str, reached: Callable[[str, torch.nn.Module], bool]) -> list[str]:
    total = 0
    left: Counter[str] = Counter()
    for name, module, weights, is_matrix in _own_weights(model):
        total += weights
        if is_matrix and not reached(name, module):
            left[type(module).__name__] += weights
    if not left:
        return []
    names = [name for name, _ in left.most_common(MODULES_NAMED)]
    others = tr(" and {count} other classes", count=len(left) - len(names)) if len(left) > len(names) else ""
    line = tr(
        "{what}: {count:,} of the base's {total:,} weights ({share:.1%}), in {names}{others}",
        what=what,
        count=left.total(),
        total=total,
        share=left.total() / total,
        names=", ".join(names),
        others=others,
    )
    return [line]


def _own_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, int, bool]]:
    """(name, module, weights, whether they are matrices beside embeddings and head) of the base, each tensor once."""
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    seen = set()
    for name, module in model.named_modules():
        if ".lora_" in name:
            continue
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                inner = module not in outer and not isinstance(module, torch.nn.Embedding)
                is_matrix = inner and len(getattr(parameter, "ds_shape", parameter.shape)) > 1
                yield name, module, count_parameters(parameter), is_matrix


def _quantised(module: torch.nn.Module) -> bool:
    return isinstance(module, Fp8Linear) or type(getattr(module, "weight", None)).__name__ == "Params4bit"
