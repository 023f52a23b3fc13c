"""Random weights at true shapes, built in memory: what speed and memory are measured on, without a download."""

from __future__ import annotations

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from llm_qa.models.fast.fp8 import quantize_fp8
from llm_qa.models.linear_modules import linear_layers
from llm_qa.models.quantization import Precision

SEED = 0


def random_base(config: PreTrainedConfig, precision: Precision, device: torch.device | str) -> PreTrainedModel:
    """A model of `config`'s shapes on `device`, freshly initialised, kept as `load_base` would keep a checkpoint's.

    The class itself is called, not `from_config`: DeepSpeed must not share out weights that are still to be quantised.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.use_cache = False
    config._attn_implementation = "sdpa"
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(precision.weights)
        torch.manual_seed(SEED)
        with torch.device(device):
            model = kind(config)
    finally:
        torch.set_default_dtype(default)
    if precision.nf4:
        quantize(model, precision)
    if precision.fp8:
        quantize_fp8(model, linear_layers(model))
    return model


def quantize(model: PreTrainedModel, precision: Precision) -> None:
    """Replace every linear layer but the head by bitsandbytes' 4-bit one, a layer at a time."""
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
    model.is_loaded_in_4bit = True  # what peft looks at
