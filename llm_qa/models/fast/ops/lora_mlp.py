"""The MLP of a GPT-NeoX decoder layer with LoRA: dense_h_to_4h (up), GELU, and the product of dense_4h_to_h (down).

One operation, opaque to torch.compile; see `lora_layer` for the tensors. down's own update is added with the residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_qa.models.fast.ops import frozen_linear, lora
from llm_qa.models.fast.ops.lora_layer import added, input_gradient, product


def gelu(h: Tensor, update: Sequence[Tensor], bias: Tensor, scale: float) -> Tensor:
    """GELU (exact, Hendrycks and Gimpel 2016, arXiv:1606.08415) of h + bias + scale * d @ b^T, (tokens, width)."""
    d, b = update
    if h.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.gelu(h, d, b, bias, scale)
    return F.gelu(added(h, update, bias, scale))


def gelu_backward(
    du: Tensor,
    dd: Tensor,
    a: Tensor,
    h: Tensor,
    update: Sequence[Tensor],
    bias: Tensor,
    seed: Tensor,
    threshold: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, a and the update's b from du, that of u = gelu(h, ...), and dd, that of dropout(u) @ a^T.

    du does not yet contain dd's part. u is recomputed and used for LoRA's gradients. `du` may be overwritten.
    """
    keep, (d, b) = lora.keep_scale(threshold), update
    if h.is_cuda:
        from llm_qa.models.fast.ops import lora_layer_kernels

        return lora_layer_kernels.gelu_backward(du, dd, a, h, d, b, bias, seed, threshold, keep, scale)
    du = lora.expand(dd, a, seed, threshold, keep, du)
    argument = added(h, update, bias, scale)
    normal = 0.5 * (1 + torch.erf(argument * 0.5**0.5))
    density = torch.exp(-0.5 * argument**2) * (2 * torch.pi) ** -0.5
    dh = du * (normal + argument * density)
    da = lora.weight_grad(dd, argument * normal, seed, threshold, keep, a)
    return dh, da, lora.weight_grad(d, dh, d, 0, scale, b.T).T


@torch.library.custom_op("llm_qa::mlp", mutates_args=())
def mlp(
    x: Tensor,
    up: Sequence[Tensor],
    up_bias: Tensor,
    down: Sequence[Tensor],
    factors: Sequence[Tensor],
    seeds: Tensor,
    threshold: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gelu(x @ up^T + ...) @ down^T without down's bias and update, down's d, and for the backward pass h and d of up.

    `factors` are LoRA's a and b of up and a of down; seeds (2, 1) are of the dropout of up and down.
    """
    keep, (up_a, up_b, down_a) = lora.keep_scale(threshold), factors
    d_up = lora.shrink(x, up_a, seeds[0], threshold, keep)
    h = frozen_linear.forward(x, list(up), up_b.shape[0])
    u = gelu(h, (d_up, up_b), up_bias, scale)
    d_down = lora.shrink(u, down_a, seeds[1], threshold, keep)
    return product(u, down, x.shape[1], True), d_down, h, d_up


@mlp.register_fake
def _(x, up, up_bias, down, factors, seeds, threshold, scale):
    small = x.shape[0], factors[0].shape[0]
    return torch.empty_like(x), x.new_empty(small), x.new_empty((x.shape[0], len(up_bias))), x.new_empty(small)


@torch.library.custom_op("llm_qa::mlp_backward", mutates_args=())
def mlp_backward(
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    up: Sequence[Tensor],
    up_bias: Tensor,
    down: Sequence[Tensor],
    factors: Sequence[Tensor],
    seeds: Tensor,
    threshold: int,
    scale: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless `wanted`) and of the factors from those of mlp's output and of down's d.

    `saved` are x, h and d of up.
    """
    (dy, dd_down), (x, h, d_up), (up_a, up_b, down_a) = gradients, saved, factors
    keep = lora.keep_scale(threshold)
    du = frozen_linear.backward(dy, list(down), h.shape[1])
    dh, down_da, up_db = gelu_backward(du, dd_down, down_a, h, (d_up, up_b), up_bias, seeds[1], threshold, scale)
    dd_up = lora.shrink(dh, up_b.T, d_up, 0, scale)
    up_da = lora.weight_grad(dd_up, x, seeds[0], threshold, keep, up_a)
    return input_gradient(dh, dd_up, x, up, up_a, seeds[0], threshold, wanted), up_da, up_db, down_da


@mlp_backward.register_fake
def _(gradients, saved, up, up_bias, down, factors, seeds, threshold, scale, wanted):
    x = saved[0]
    return torch.empty_like(x) if wanted else x.new_empty(0), *map(torch.empty_like, factors)


def _keep_mlp(ctx, inputs, output):
    x, up, up_bias, down, factors, seeds, ctx.threshold, ctx.scale = inputs
    _, _, h, d_up = output
    ctx.set_materialize_grads(False)  # h and d are only for the backward pass and have no gradients
    ctx.ups = len(up)
    ctx.save_for_backward(x, h, d_up, *factors, up_bias, seeds, *up, *down)


def _mlp_backward(ctx, dy, dd_down, _dh, _dd_up):
    tensors = ctx.saved_tensors
    saved, factors, (up_bias, seeds), weights = tensors[:3], tensors[3:6], tensors[6:8], tensors[8:]
    up, down = weights[: ctx.ups], weights[ctx.ups :]
    wanted, gradients = ctx.needs_input_grad[0], (dy.contiguous(), dd_down.contiguous())
    dx, *of_factors = mlp_backward(
        gradients, saved, up, up_bias, down, factors, seeds, ctx.threshold, ctx.scale, wanted
    )
    return dx if wanted else None, [None] * len(up), None, [None] * len(down), of_factors, None, None, None


mlp.register_autograd(_mlp_backward, setup_context=_keep_mlp)
