"""One GPT-NeoX decoder layer on a sequence of packed documents: its tensors and its forward pass.

A function of tensors alone, so that torch.compile makes one graph for all layers. Architecture: Black et
al. 2022, arXiv:2204.06745.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_qa.models.fast.ops.attention import attend
from llm_qa.models.fast.ops.frozen_linear import frozen_weight
from llm_qa.models.fast.ops.lora import dropout_threshold
from llm_qa.models.fast.ops.lora_attention import apply_rotary, attention
from llm_qa.models.fast.ops.lora_layer import lora_product, residual
from llm_qa.models.fast.ops.lora_mlp import mlp
from llm_qa.models.fast.rows import take_rows
from llm_qa.models.fast.trained_product import last_product


class LinearWeights(NamedTuple):
    """One linear layer: a frozen weight with LoRA (a, b), or a trained one (a and b are None)."""

    weight: list[Tensor]
    bias: Tensor
    a: Tensor | None
    b: Tensor | None


class LayerWeights(NamedTuple):
    """The tensors of one decoder layer; each norm is (weight, bias)."""

    attention_norm: tuple[Tensor, Tensor]
    mlp_norm: tuple[Tensor, Tensor]
    query_key_value: LinearWeights
    dense: LinearWeights
    dense_h_to_4h: LinearWeights
    dense_4h_to_h: LinearWeights


@dataclass(frozen=True)
class LayerShape:
    """Constants that all layers of a model share; torch.compile specialises the graph on them."""

    heads: int
    norm_eps: float
    dropout_threshold: int
    lora_scale: float
    dtype: torch.dtype


def layer_shape(model: torch.nn.Module, dtype: torch.dtype) -> LayerShape:
    """The shape of a GPT-NeoX, plain or with LoRA on it."""
    config, layer = model.config, model.gpt_neox.layers[0]
    lora = layer.attention.query_key_value
    with_lora = hasattr(lora, "lora_A")
    dropout = getattr(lora.lora_dropout["default"], "p", 0.0) if with_lora else 0.0
    return LayerShape(
        heads=config.num_attention_heads,
        norm_eps=config.layer_norm_eps,
        dropout_threshold=dropout_threshold(dropout),
        lora_scale=lora.scaling["default"] if with_lora else 0.0,
        dtype=dtype,
    )


def linear_modules(layer: torch.nn.Module) -> list[torch.nn.Module]:
    """The four linears of a GPTNeoXLayer: query_key_value, dense, dense_h_to_4h, dense_4h_to_h."""
    return [layer.attention.query_key_value, layer.attention.dense, layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h]


def layer_weights(
    layer: torch.nn.Module, dtype: torch.dtype, parameter_aliases: dict | None = None, prepared: dict | None = None
) -> LayerWeights:
    """The tensors of a GPTNeoXLayer whose linears are peft's LoRA layers, or plain ones that are trained.

    `parameter_aliases` maps trained parameters, and `prepared` frozen base layers, to the tensors used in their place.
    """
    parameter_aliases, prepared = parameter_aliases or {}, prepared or {}

    def linear(module) -> LinearWeights:
        if not hasattr(module, "lora_A"):
            return LinearWeights([module.weight], module.bias, None, None)
        base = module.get_base_layer()
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        frozen = prepared.get(base) or frozen_weight(base, dtype)
        return LinearWeights(frozen, base.bias, parameter_aliases.get(a, a), parameter_aliases.get(b, b))

    def norm(module) -> tuple[Tensor, Tensor]:
        return module.weight, module.bias

    return LayerWeights(
        norm(layer.input_layernorm),
        norm(layer.post_attention_layernorm),
        *map(linear, linear_modules(layer)),
    )


def layer_forward(
    x: Tensor,
    w: LayerWeights,
    rotary: tuple[Tensor, Tensor],
    bounds: tuple[Tensor, Tensor],
    seeds: Tensor,
    shape: LayerShape,
    rows: Tensor | None = None,
) -> Tensor:
    """One decoder layer on a sequence of packed documents: (tokens, d) -> (tokens, d), both of shape.dtype.

    `bounds` are those of attention.document_bounds. `seeds` are four int64 seeds (4, 1) of the LoRA dropout. With
    `rows`, int64 and all different, only those rows of the output are computed, in that order: (len(rows), d); dropout
    after the attention then depends on a row's place among them.
    """
    dtype, threshold, scale = shape.dtype, shape.dropout_threshold, shape.lora_scale

    def norm(x, weight_bias):
        weight, bias = weight_bias
        return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), shape.norm_eps).to(dtype)

    if w.dense.a is None:  # every weight is trained

        def linear(value, weights, product=F.linear):
            return product(value, weights.weight[0].to(dtype), weights.bias.to(dtype))

        packed = apply_rotary(linear(norm(x, w.attention_norm), w.query_key_value), *rotary, shape.heads)
        attended, _ = attend(packed, *bounds, shape.heads)
        x, attended = take_rows(x, rows), take_rows(attended, rows)
        attended = linear(attended, w.dense, last_product)
        activated = F.gelu(linear(norm(x, w.mlp_norm), w.dense_h_to_4h))
        return x + attended + linear(activated, w.dense_4h_to_h, last_product)

    qkv, dense, up, down = w.query_key_value, w.dense, w.dense_h_to_4h, w.dense_4h_to_h
    packed, d = lora_product(norm(x, w.attention_norm), qkv.weight, qkv.a, seeds[0], len(qkv.bias), threshold, False)
    attended, _, _ = attention(packed, (d, qkv.b), qkv.bias, rotary, bounds, shape.heads, scale)
    x, attended = take_rows(x, rows), take_rows(attended, rows)
    attended, d_attended = lora_product(attended, dense.weight, dense.a, seeds[1], x.shape[1], threshold, True)
    factors = up.a, up.b, down.a
    mlp_output, d_mlp, _, _ = mlp(
        norm(x, w.mlp_norm), up.weight, up.bias, down.weight, factors, seeds[2:], threshold, scale
    )
    return residual(x, attended, (d_attended, dense.b), mlp_output, (d_mlp, down.b), dense.bias + down.bias, scale)
