"""Random weights in a real model's shapes, built without a download to measure speed and memory."""

from __future__ import annotations

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from llm_qa.models.fast.ops.fp8 import quantize_fp8
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.precision import Precision

SEED = 0


def random_base(config: PreTrainedConfig, precision: Precision, device: torch.device | str) -> PreTrainedModel:
    """A model of `config`'s shapes on `device`, freshly initialised, in the precision that `load_base` would give it.

    The class itself is called, not `from_config`: DeepSpeed must not partition weights before they are quantised.
    Decoder layers are made and quantised one by one, so that at most one is in memory in 16 bits.
    """
    kind, layers = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config.num_hidden_layers
    config.use_cache = False
    config._attn_implementation = "sdpa"
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(precision.weights)
        torch.manual_seed(SEED)
        config.num_hidden_layers = 1
        with torch.device(device):
            model = kind(config)
            config.num_hidden_layers = layers
            (stack,) = [part for part in model.base_model.children() if isinstance(part, torch.nn.ModuleList)]
            for number in range(layers):
                if number:
                    stack.append(type(stack[0])(config, number))
                stack[number].apply(model._init_weights)
                pack(stack[number], precision)
    finally:
        torch.set_default_dtype(default)
        config.num_hidden_layers = layers
    model.is_loaded_in_4bit = precision.nf4  # read by peft
    return model


def pack(module: torch.nn.Module, precision: Precision) -> None:
    """Quantise the linear layers of a decoder layer where the precision asks for it."""
    if precision.nf4:
        quantize(module, precision)
    if precision.fp8_weights:
        quantize_fp8(module, linear_layers(module))


def quantize(model: torch.nn.Module, precision: Precision) -> None:
    """Replace every linear layer but the head by bitsandbytes' 4-bit one, one at a time."""
    import bitsandbytes

    for name, layer in linear_layers(model).items():
        packed = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=precision.compute,
            compress_statistics=precision.double_quant,
            quant_type="nf4",
            quant_storage=precision.storage or torch.uint8,
            device="meta",
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data,
            requires_grad=False,
            compress_statistics=precision.double_quant,
            quant_type="nf4",
            quant_storage=precision.storage or torch.uint8,
            module=packed,
        ).to(layer.weight.device)
        packed.bias = layer.bias
        packed.support_avx512bf16_for_cpu = False  # see loading.load_base
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)
