"""The training forward pass of architectures other than GPT-NeoX, for one GPU.

The decoder layers stay those of transformers. Three of their parts are replaced, and what lies between is compiled: the
linear layers with LoRA (`ops/lora_linear`), attention, which walks inside the documents of a pack (`ops/attention`),
and the head with its loss, computed for tokens with a label alone (`ops/cross_entropy`). Modules, parameters and their
names stay as they are, so checkpoints and adapters are the same with and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm_qa.data.packing import IGNORED
from llm_qa.models.fast.ops.attention import attend, document_bounds
from llm_qa.models.fast.ops.cross_entropy import linear_cross_entropy
from llm_qa.models.fast.ops.frozen_linear import frozen_weight, with_fp8_scales
from llm_qa.models.fast.ops.lora import dropout_threshold
from llm_qa.models.fast.ops.lora_linear import lora_linear
from llm_qa.models.fast.rows import computed_rows, label_rows, take_rows

ATTENTION = "llm_qa_documents"  # the name of attend_documents among transformers' attention implementations


def attend_documents(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    document_starts: Tensor,
    document_ends: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (rows, heads, tokens, width) each -> (rows, tokens, heads, width).

    starts and ends are those of `document_bounds` for all rows end to end. Grouped keys and values are repeated.
    """
    rows, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    if scaling is not None:
        query = query * (scaling * width**0.5)
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    packed = torch.stack([query, key, value], dim=3).permute(0, 2, 1, 3, 4).reshape(rows * tokens, 3 * heads * width)
    if sliding_window is not None:
        places = torch.arange(rows * tokens, device=packed.device, dtype=torch.int32)
        document_starts = torch.maximum(document_starts, places - (sliding_window - 1))
        document_ends = torch.minimum(document_ends, places + sliding_window)
    attended, _ = attend(packed, document_starts, document_ends, heads)
    return attended.view(rows, tokens, heads, width), None


@dataclass
class LoraTensors:
    """What a linear layer with LoRA computes with besides its own A and B, which are read from the module."""

    weight: list[Tensor]  # as in frozen_linear
    bias: Tensor | None
    seed: Tensor  # (1,), int64, new in every forward pass
    threshold: int
    scale: float


def lora_forward(module: torch.nn.Module, x: Tensor) -> Tensor:
    """What peft's LoRA layer computes of x (.., inputs) -> (.., outputs), with its LoraTensors."""
    tensors: LoraTensors = module.lora_tensors
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    threshold = tensors.threshold if module.training else 0
    y, _ = lora_linear(
        x.reshape(-1, x.shape[-1]), tensors.weight, tensors.bias, a, b, tensors.seed, threshold, tensors.scale
    )
    return y.view(*x.shape[:-1], -1)


def with_lora_forward(kind: type) -> type:
    """A subclass of a class of LoRA layers with lora_forward.

    The compiler asks for each module's own `forward` whether it is the same object as when it compiled, and for its
    class alone otherwise: modules of one class share a graph.
    """
    return type(kind.__name__, (kind,), {"forward": lora_forward})


def layer_stack(model: torch.nn.Module) -> list[torch.nn.Module]:
    """A causal LM's decoder layers, whatever their class; ValueError where it has no stack of them, or several."""
    stacks = [part for part in model.base_model.children() if isinstance(part, torch.nn.ModuleList)]
    if len(stacks) != 1:
        raise ValueError(f"it has {len(stacks)} stacks of layers")
    return list(stacks[0])


def lora_tensors(module: torch.nn.Module, dtype: torch.dtype, seed: Tensor) -> LoraTensors:
    """Of peft's LoRA layer on a frozen linear one."""
    base, dropout = module.get_base_layer(), getattr(module.lora_dropout["default"], "p", 0.0)
    weight = frozen_weight(base, dtype)
    return LoraTensors(weight, base.bias, seed, dropout_threshold(dropout), module.scaling["default"])


def layer_forward(layer: torch.nn.Module, *inputs, **named):
    """The forward pass that the class of a decoder layer defines; a function, so that all layers share one graph."""
    return type(layer).forward(layer, *inputs, **named)


class FastDecoder:
    """Replaces `forward` of a causal LM with LoRA for batches with labels; other calls reach the original forward.

    `tokens` are those of a batch, of which no more than `max_label_tokens` have a label: for only so many rows the head
    is computed. `recomputed` is the number of layers with activation checkpointing. Frozen weights are those of the
    model itself, no copies.
    """

    def __init__(
        self, model: torch.nn.Module, dtype: torch.dtype, tokens: int, max_label_tokens: int, *, compiled: bool
    ):
        self.model, self.usual, self.dtype, self.tokens = model, model.forward, dtype, tokens
        self.layers, self.recomputed = layer_stack(model), 0
        self.max_label_tokens = computed_rows(max_label_tokens, tokens)
        self.layer = torch.compile(layer_forward, dynamic=False, fullgraph=True) if compiled else layer_forward
        self.usual_attention = model.config._attn_implementation
        adapted = [module for layer in self.layers for module in layer.modules() if hasattr(module, "lora_A")]
        self.classes = {module: type(module) for module in adapted}
        self.with_forward = {kind: with_lora_forward(kind) for kind in set(self.classes.values())}
        self.seeds = [torch.zeros(1, dtype=torch.int64, device=self.device()) for _ in adapted]
        self.linears = {
            module: lora_tensors(module, dtype, seed) for module, seed in zip(adapted, self.seeds, strict=True)
        }
        AttentionInterface.register(ATTENTION, attend_documents)

    def install(self) -> None:
        """Replace the forward passes of model, layers and linear layers, and the attention.

        The model's by a partial, because accelerate would rebind a method to the model it wraps.
        """
        self.model.set_attn_implementation(ATTENTION)
        self.model.forward = partial(self.forward)
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self.run_layer, number)
        for module, tensors in self.linears.items():
            module.__class__, module.lora_tensors = self.with_forward[self.classes[module]], tensors

    def remove(self) -> None:
        """Leave the model as it was before install()."""
        self.model.set_attn_implementation(self.usual_attention)
        for module in (self.model, *self.layers):
            vars(module).pop("forward", None)
        for module, kind in self.classes.items():
            module.__class__ = kind
            del module.lora_tensors

    @contextmanager
    def installed(self) -> Iterator[None]:
        """install(), and remove() at the end."""
        self.install()
        try:
            yield
        finally:
            self.remove()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **rest):
        """The mean loss of the label tokens (or their sum over num_items_in_batch); no logits."""
        if labels is None or attention_mask is not None or position_ids is None:
            self.model.set_attn_implementation(self.usual_attention)
            try:
                return self.usual(
                    input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, labels=labels, **rest
                )
            finally:
                self.model.set_attn_implementation(ATTENTION)
        with torch.autocast(input_ids.device.type, enabled=False):
            return CausalLMOutputWithPast(
                loss=self.loss(input_ids, position_ids, labels, rest.get("num_items_in_batch"))
            )

    def loss(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor, items=None) -> Tensor:
        """Cross entropy of (rows, length) packs, a fp32 scalar: mean over label tokens, or sum over `items`."""
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1)
        count = (targets != IGNORED).sum()
        number = int(torch.randint(2**31, (1,))) if self.model.training else 0  # from the generator checkpoints keep
        places = torch.arange(len(self.seeds), device=labels.device)[:, None]
        torch._foreach_copy_(self.seeds, list((number + places * 0x632BE5AB) & 0xFFFFFFFF))
        hidden = self.hidden(input_ids, position_ids).flatten(0, 1)
        if torch.is_grad_enabled() and self.max_label_tokens < len(targets):
            rows = label_rows(targets, self.max_label_tokens)
            hidden, targets = take_rows(hidden, rows), targets[rows]
        head = self.model.get_output_embeddings().weight.to(self.dtype)
        return linear_cross_entropy(hidden.to(self.dtype), head, targets) / (count if items is None else items)

    def hidden(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The last hidden states (rows, length, d), which the head reads."""
        starts, ends = document_bounds(position_ids.reshape(-1))
        return self.model.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            document_starts=starts,
            document_ends=ends,
        ).last_hidden_state

    def run_layer(self, number: int, *inputs, **named):
        """Decoder layer `number`; where it is given documents' bounds, compiled, and recomputed if it is to be."""
        layer = self.layers[number]
        if "document_starts" not in named:
            return layer_forward(layer, *inputs, **named)
        # The first layer on frozen embeddings is a different graph: compiling it too would take longer than it saves.
        usual = inputs[0].requires_grad or not torch.is_grad_enabled()
        run = self.layer if usual else layer_forward
        if number >= self.recomputed or not torch.is_grad_enabled():
            return run(layer, *inputs, **named)
        # The dropout is a function of its seeds, so no state of a random generator is kept.
        return checkpoint(run, layer, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.model.get_input_embeddings().weight.device

    def round_to_fp8(self) -> None:
        """Give nf4 weights the scales with which they are multiplied in fp8."""
        for module, tensors in self.linears.items():
            base = module.get_base_layer()
            tensors.weight = with_fp8_scales(tensors.weight, (base.out_features, base.in_features))

    def keep_16_bits(self) -> None:
        """Take round_to_fp8() back."""
        for module, tensors in self.linears.items():
            tensors.weight = frozen_weight(module.get_base_layer(), self.dtype)

    def skipped_flops(self, flops_per_weight: float) -> float:
        """FLOPs per token that this path skips: the head for tokens without a label."""
        head = self.model.get_output_embeddings().weight.numel()
        return flops_per_weight * head * (1 - self.max_label_tokens / self.tokens)

    def measure_layer(self) -> tuple[int, int, int]:
        """Bytes on the GPU: saved by a layer for its backward pass, needed by that pass besides, and of its input.

        Runs the first layer forward and backward on random input, which also compiles it. Needs install().
        """
        (x, *inputs), named = first_layer_inputs(self, self.hidden, self.tokens)
        x = torch.randn_like(x).requires_grad_()
        trained = [parameter for parameter in self.layers[0].parameters() if parameter.requires_grad]
        for _ in range(2):  # the first pass compiles
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            y = self.run_layer(0, x, *inputs, **named)
            kept = torch.cuda.memory_allocated() - before
            torch.autograd.grad(y, (x, *trained), torch.ones_like(y))
            passing = torch.cuda.max_memory_allocated() - before - kept
        return kept, passing, x.numel() * x.element_size()


class _Reached(Exception):
    """Ends a forward pass where a decoder layer would be called, with what it would be called with."""


def first_layer_inputs(fast: FastDecoder, run: Callable, tokens: int) -> tuple[tuple, dict]:
    """Positional and named arguments that `run`, a forward pass of the model or its base, gives the first layer.

    They are those of random documents of up to 100 tokens in a row of `tokens`. ValueError where it is not called.
    """

    def reached(module, inputs, named):
        raise _Reached(inputs, named)

    handle = fast.layers[0].register_forward_pre_hook(reached, with_kwargs=True)
    try:
        run(**random_documents(fast, tokens))
    except _Reached as found:
        return found.args
    finally:
        handle.remove()
    raise ValueError("its first layer is not called")


def random_documents(fast: FastDecoder, tokens: int) -> dict[str, Tensor]:
    """Documents of up to 100 random tokens in one row: input_ids and position_ids (1, tokens)."""
    generator, device = torch.Generator().manual_seed(0), fast.device()
    words = fast.model.get_input_embeddings().num_embeddings
    ids = torch.randint(words, (1, tokens), generator=generator).to(device)
    return {"input_ids": ids, "position_ids": (torch.arange(tokens, device=device) % 100)[None]}
