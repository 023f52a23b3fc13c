"""LoRA added to the weights that it was trained on: W + scale · B A (Hu et al. 2021, arXiv:2106.09685, section 4.1).

The sum is made in fp32 and rounded once, to the 16 bits in which the base is published. It never goes back to 4 bits:
there the update would be lost in the rounding. A run trained on nf4 or fp8 weights saw these rounded; the sum is made
with the weights before that rounding, so its answers can differ a little from the run's, which evaluating it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import PreTrainedModel

from llm_qa.console import UserError

ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraUpdate:
    """What LoRA adds to one weight: `expand` (out, rank) times `shrink` (rank, in) times `scale`."""

    shrink: torch.Tensor
    expand: torch.Tensor
    scale: float
    transposed: bool  # GPT-2 keeps its weights as (in, out)

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum in fp32, of the weight's shape; UserError where the shapes do not fit."""
        update = (self.expand.float() @ self.shrink.float()) * self.scale
        update = update.T if self.transposed else update
        if update.shape != weight.shape:
            raise UserError(
                f"The adapter's update of {tuple(update.shape)} does not fit the base's weight of "
                f"{tuple(weight.shape)}: the base is not the one that the run was trained on."
            )
        return update.add_(weight)


def lora_updates(adapter: Path, meta_model: PreTrainedModel) -> dict[str, LoraUpdate]:
    """Name of a weight in the model -> what the adapter in a folder adds to it.

    `meta_model` has the base's shapes, on the meta device; it is given the adapter's layers, which say how each is
    scaled, and is of no use after that.
    """
    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    config.base_model_name_or_path = meta_model.name_or_path  # another name is warned of
    with torch.device("meta"):
        peft_model = get_peft_model(meta_model, config)
    layers = {name: layer for name, layer in peft_model.named_modules() if isinstance(layer, LoraLayer)}
    updates = {}
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as weights:
        stored = set(weights.keys())
        for name, layer in layers.items():
            shrink, expand = (f"{name}.lora_{factor}.weight" for factor in "AB")
            if not {shrink, expand} <= stored:
                raise UserError(f"{adapter / ADAPTER_WEIGHTS} lacks {shrink} or {expand}: the adapter is damaged.")
            stored -= {shrink, expand}
            updates[f"{name.removeprefix('base_model.model.')}.weight"] = LoraUpdate(
                weights.get_tensor(shrink), weights.get_tensor(expand), layer.scaling["default"], layer.fan_in_fan_out
            )
    if stored:
        raise UserError(f"{adapter / ADAPTER_WEIGHTS} has {sorted(stored)[0]}, which cannot be merged.")
    return updates


def merged(
    tensors: Iterator[tuple[str, torch.Tensor]],
    names: Mapping[str, str],
    updates: Mapping[str, LoraUpdate],
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors with LoRA added, one after another.

    `names` leads from a tensor's name in the file, which it keeps, to its name in the model, by which `updates` are
    known. What is not in it (buffers that old checkpoints carry) is left out. Numbers are of `dtype`; None: of each
    tensor's own. Raises UserError for an update whose weight the checkpoint does not have, at the end.
    """
    left = set(updates)
    for stored, tensor in tensors:
        if stored not in names:
            continue
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if update := updates.get(names[stored]):
            left.discard(names[stored])
            tensor = update.added_to(tensor)
            if not torch.isfinite(tensor.to(wanted)).all():
                raise UserError(f"{stored} is not finite in {wanted}: set --dtype to bf16 or fp32.")
        else:
            tensor = tensor.clone()  # a tensor of the file would keep all of the file in memory while it lives
        yield stored, tensor.to(wanted)
    if left:
        raise UserError(f"The base's checkpoint has no {sorted(left)[0]}, which the adapter changes.")
