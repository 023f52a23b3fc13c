"""A forward and a backward pass as two CUDA graphs, replayed with one launch each.

The same arrangement as torch.cuda.make_graphed_callables, for a function that only parameters need gradients of.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graphs, *trained):
        ctx.graphs = graphs
        graphs.forward_graph.replay()
        return graphs.output.detach()

    @staticmethod
    def backward(ctx, grad):
        graphs = ctx.graphs
        graphs.grad.copy_(grad)
        graphs.backward_graph.replay()
        return None, *torch._foreach_mul(graphs.gradients, 1.0)  # copies: the next replay overwrites the originals


class GraphedPass:
    """`function(*inputs)` with inputs of fixed shapes on the GPU, and the gradients of parameters.

    The function reads each parameter through its alias, a leaf tensor on the same memory. The tensor that a call
    returns is overwritten by the next call.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        parameter_aliases: dict[torch.nn.Parameter, Tensor],
    ):
        self.trained, self.inputs = list(parameter_aliases), [value.clone() for value in inputs]
        trained = list(parameter_aliases.values())  # what gradients are computed for
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: compilation and library set-up are not allowed during a capture
            output = function(*self.inputs)
            torch.autograd.grad(output, trained, torch.zeros_like(output))
            del output
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.empty_cache()  # the graphs allocate from their own pool
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Capture only this thread's calls: another thread may be pinning the next batch.
        with torch.cuda.graph(self.forward_graph, capture_error_mode="thread_local"):
            output = function(*self.inputs)
        self.grad = torch.empty_like(output)
        pool = self.forward_graph.pool()
        with torch.cuda.graph(self.backward_graph, pool=pool, capture_error_mode="thread_local"):
            self.gradients = torch.autograd.grad(output, trained, self.grad)
        self.output = output.detach()
        gc.collect()
        gc.freeze()  # the compiler leaves millions of objects, and each garbage collection over them takes a second

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's value; its backward pass gives the gradients of the parameters."""
        torch._foreach_copy_(self.inputs, list(inputs))
        return _Replay.apply(self, *self.trained)
