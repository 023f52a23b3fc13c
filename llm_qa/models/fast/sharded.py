"""GPT-NeoX's training pass under ZeRO-3, where a layer's weights are on a GPU only while DeepSpeed has gathered them.

DeepSpeed gathers what a module owns in the hooks of that module's call, before its forward and again before its
backward pass, and partitions it again after each. So weights are read only inside the call of the module that owns
them: a decoder layer (a leaf module, llm_qa.training.zero3, so that one gather brings all of it), the embedding, the
last norm, the head. A layer saves only its input for the backward pass, never a gathered weight, and is recomputed
there from the weights that the hook has gathered again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from llm_qa.models.fast.layer import LayerShape, layer_forward, layer_weights
from llm_qa.models.fast.model import FastNeoX
from llm_qa.models.fast.ops.cross_entropy import linear_cross_entropy
from llm_qa.models.fast.ops.recomputation import recomputing


class PackedInputs(NamedTuple):
    """A decoder layer's arguments besides its input; each field is layer_forward's argument of that name."""

    rotary: tuple[Tensor, Tensor]
    bounds: tuple[Tensor, Tensor]
    seeds: Tensor
    shape: LayerShape
    rows: Tensor | None


class _RecomputedLayer(torch.autograd.Function):
    """A decoder layer, x (tokens, d) -> (tokens, d), that saves only x and reads its weights in both passes.

    `trained` are the layer's trained parameters. They are arguments only so that autograd delivers their gradients,
    which DeepSpeed's hooks collect; their values are read from the layer.
    """

    @staticmethod
    def forward(ctx, run: Callable, layer: torch.nn.Module, packed: PackedInputs, x: Tensor, *trained: Tensor):
        ctx.run, ctx.layer, ctx.packed = run, layer, packed
        ctx.save_for_backward(x)
        return run(x, layer_weights(layer, packed.shape.dtype), *packed)

    @staticmethod
    def backward(ctx, grad: Tensor):
        layer, packed = ctx.layer, ctx.packed
        x = ctx.saved_tensors[0].detach().requires_grad_()
        trained = {p: p.detach().requires_grad_() for p in layer.parameters() if p.requires_grad}
        weights = layer_weights(layer, packed.shape.dtype)
        weights = tree_map(lambda tensor: trained.get(tensor, tensor), weights)
        with torch.enable_grad(), recomputing():
            y = ctx.run(x, weights, *packed)
        return None, None, None, *torch.autograd.grad(y, [x, *trained.values()], grad)


class ShardedNeoX(FastNeoX):
    """FastNeoX whose weights are read inside the calls of the modules that own them; every layer is recomputed."""

    def install(self) -> None:
        """Replace the forward of the model, of its decoder layers and of its head."""
        super().install()
        self.recomputed = len(self.model.gpt_neox.layers)
        for layer in self.model.gpt_neox.layers:
            layer.forward = partial(self.layer_call, layer, layer.forward)
        head = self.model.get_output_embeddings()
        head.forward = partial(self.head_call, head, head.forward)

    def layer_call(self, layer, usual: Callable, x: Tensor, *args, packed: PackedInputs | None = None, **rest):
        """A decoder layer's forward: transformers' own unless `packed` is given."""
        if packed is None:
            return usual(x, *args, **rest)
        run = self.layer if packed.rows is None else layer_forward  # on selected rows the last layer is not compiled
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        return _RecomputedLayer.apply(run, layer, packed, x, *trained)

    def head_call(self, head, usual: Callable, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """The head's forward: the logits, or with `targets` the summed cross entropy."""
        if targets is None:
            return usual(hidden)
        return linear_cross_entropy(hidden, head.weight.to(hidden.dtype), targets)

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden, targets)

    def layer_output(self, number: int, x: Tensor, rotary, bounds, seeds, shape, rows, parameter_aliases) -> Tensor:
        return self.model.gpt_neox.layers[number](x, packed=PackedInputs(rotary, bounds, seeds, shape, rows))

    def final_norm(self, x: Tensor) -> Tensor:
        return self.model.gpt_neox.final_layer_norm(x)

    def first_input_flops(self) -> float:
        """0: that gradient is always computed, as DeepSpeed's hooks wait for it (llm_qa.training.zero3)."""
        return 0.0

    def device(self) -> torch.device:
        """This process's GPU; a partitioned weight may be kept in CPU memory."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    def difference(self, tokens: int = 512) -> float:
        """FastNeoX.difference with the first layer gathered; the largest over all ranks, so that all choose alike."""
        with gathered(self.model.gpt_neox.layers[0]):
            found = torch.tensor(super().difference(tokens), device=self.device())
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return found.item()


@contextmanager
def gathered(module: torch.nn.Module) -> Iterator[None]:
    """Gather a module's parameters whole on every rank; writes to them are lost. Every rank must enter."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        yield
