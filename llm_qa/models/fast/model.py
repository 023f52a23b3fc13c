"""GPT-NeoX's training forward pass for one GPU: packs end to end in one sequence, compiled layers.

Modules, parameters and their names stay those of transformers and peft. Only the computation of the training loss is
replaced, so checkpoints and adapters are the same with and without it.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from llm_qa.data.packing import IGNORED
from llm_qa.models.fast.cuda_graphs import GraphedPass
from llm_qa.models.fast.layer import LayerWeights, layer_forward, layer_shape, layer_weights, linear_modules
from llm_qa.models.fast.ops.attention import document_bounds, document_mask
from llm_qa.models.fast.ops.cross_entropy import linear_cross_entropy
from llm_qa.models.fast.ops.frozen_linear import FP8_LAYOUTS, cache_dequantized, frozen_weight, with_fp8_scales
from llm_qa.models.fast.ops.recomputation import recomputing
from llm_qa.models.fast.rows import computed_rows, label_rows


class HostEmbedding(torch.nn.Module):
    """A frozen embedding (vocabulary, d) in CPU memory; the vectors looked up are copied to the device of the ids."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight.detach().cpu()  # not a parameter: Module.to() would move it back to the GPU

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 (...) -> (..., d)."""
        return F.embedding(input_ids.cpu(), self.weight).to(input_ids.device)


class FastNeoX:
    """Replaces `forward` of a GPTNeoXForCausalLM for batches with labels; other calls reach the original forward.

    `tokens` is the length that every batch is padded to, so that one compiled graph serves all batches. No batch has
    more than `max_label_tokens` label tokens; the last layer's MLP and the head are computed for only so many rows.
    `recomputed` is the number of layers with activation checkpointing; their inputs are kept on the GPU, or in CPU
    memory after offload_to_cpu().
    """

    def __init__(
        self,
        model: torch.nn.Module,
        dtype: torch.dtype,
        tokens: int,
        max_label_tokens: int,
        *,
        compiled: bool,
        cuda_graphs: bool = False,
    ):
        self.model, self.usual = model, model.forward
        self.shape = layer_shape(model, dtype)
        self.tokens, self.cuda_graphs, self.recomputed, self.offloaded = tokens, cuda_graphs, 0, False
        self.max_label_tokens = computed_rows(max_label_tokens, tokens)
        self.graphs: GraphedPass | None = None
        self.prepared: dict[torch.nn.Module, list[Tensor]] = {}
        self.resident: torch.nn.Module | None = None  # the embedding that offload_to_cpu() replaced
        self.layer = torch.compile(layer_forward, dynamic=False, fullgraph=True) if compiled else layer_forward

    def install(self) -> None:
        """Replace the model's forward. A partial, because accelerate would rebind a method to the model it wraps."""
        self.model.forward = partial(self.forward)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, **rest):
        """The mean loss of the label tokens (or their sum over num_items_in_batch); no logits."""
        if labels is None or attention_mask is not None or position_ids is None:
            return self.usual(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, labels=labels, **rest
            )
        with torch.autocast(input_ids.device.type, enabled=False):
            return CausalLMOutputWithPast(
                loss=self.loss(input_ids, position_ids, labels, rest.get("num_items_in_batch"))
            )

    def loss(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor, items=None) -> Tensor:
        """Cross entropy of (rows, length) packs, a fp32 scalar: mean over label tokens, or sum over `items`."""
        padding = (0, max(0, self.tokens - input_ids.numel()))
        targets = F.pad(F.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1), padding, value=IGNORED)
        inputs: tuple[Tensor, ...] = (
            F.pad(input_ids.reshape(-1), padding),
            F.pad(position_ids.reshape(-1), padding),
            self.seed(input_ids.device),
        )
        count = (targets != IGNORED).sum()
        if torch.is_grad_enabled() and self.max_label_tokens < len(targets):
            rows = label_rows(targets, self.max_label_tokens)
            inputs, targets = (*inputs, rows), targets[rows]
        return self.head_loss(self.run(*inputs), targets) / (count if items is None else items)

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of the head's logits for hidden (tokens, d), summed over the targets that are not below 0."""
        head = self.model.get_output_embeddings().weight.to(self.shape.dtype)
        return linear_cross_entropy(hidden, head, targets)

    def seed(self, device: torch.device) -> Tensor:
        """The seed of a forward pass (1,): drawn from torch's generator on the CPU, which checkpoints keep."""
        number = int(torch.randint(2**31, (1,))) if self.model.training else 0
        return torch.full((1,), number, device=device)  # filled on the GPU: copying a tensor there would synchronise

    def run(self, *inputs: Tensor) -> Tensor:
        """hidden(), with `cuda_graphs` replayed: launching short kernels takes longer than running them."""
        if not (self.cuda_graphs and torch.is_grad_enabled() and self.model.training and len(inputs[0]) == self.tokens):
            return self.hidden(*inputs)
        if self.graphs is None:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            # Leaf tensors on the parameters' memory, which gradients are computed for in the parameters' place: a
            # parameter's own gradient may be accumulated on another CUDA stream.
            self.parameter_aliases = {parameter: parameter.detach().requires_grad_() for parameter in trained}
            self.graphs = GraphedPass(
                lambda *given: self.hidden(*given, parameter_aliases=self.parameter_aliases),
                inputs,
                self.parameter_aliases,
            )
        return self.graphs(*inputs)

    def rotary(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (tokens, rotated) in x's dtype."""
        cos, sin = self.model.gpt_neox.rotary_emb(x[None], position_ids[None])
        return cos[0].contiguous(), sin[0].contiguous()

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        seed: Tensor,
        rows: Tensor | None = None,
        *,
        parameter_aliases: dict | None = None,
    ) -> Tensor:
        """The last hidden states (tokens, d), which the head reads; `seed` (1,) is of the dropout of all layers.

        With `rows` only these rows of the last layer's output are computed: (len(rows), d). Parameters in
        `parameter_aliases` are replaced by their aliases.
        """
        model = self.model.gpt_neox
        x = model.embed_in(input_ids).to(self.shape.dtype)
        rotary = self.rotary(x, position_ids)
        bounds = document_bounds(position_ids)
        numbers = torch.arange(4 * len(model.layers), device=x.device).view(-1, 4, 1)
        seeds = (seed + numbers * 0x632BE5AB) & 0xFFFFFFFF
        shape = self.shape if self.model.training else dataclasses.replace(self.shape, dropout_threshold=0)
        for number, layer in enumerate(model.layers):
            chosen = rows if layer is model.layers[-1] else None
            x = self.layer_output(number, x, rotary, bounds, seeds[number], shape, chosen, parameter_aliases)
        return self.final_norm(x)

    def layer_output(self, number: int, x: Tensor, rotary, bounds, seeds, shape, rows, parameter_aliases) -> Tensor:
        """The output of decoder layer `number` for x (tokens, d)."""
        weights = layer_weights(self.model.gpt_neox.layers[number], self.shape.dtype, parameter_aliases, self.prepared)
        return self.run_layer(x, weights, rotary, bounds, seeds, shape, rows, recompute=number < self.recomputed)

    def final_norm(self, x: Tensor) -> Tensor:
        """The last LayerNorm, computed in fp32, in x's dtype."""
        norm = self.model.gpt_neox.final_layer_norm
        return F.layer_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)

    def offload_to_cpu(self) -> None:
        """Keep the embedding and the inputs of recomputed layers in CPU memory; each is needed once in a pass.

        Turns CUDA graphs off, which cannot contain the copies. Calling it again changes nothing.
        """
        self.offloaded, self.cuda_graphs = True, False
        embedding = self.model.get_input_embeddings()
        if isinstance(embedding, HostEmbedding) or embedding.weight.requires_grad:
            return
        if embedding.weight is not self.model.get_output_embeddings().weight:
            self.resident, self.resident_device = embedding, embedding.weight.device
            embedding.weight.data = embedding.weight.data.cpu()
            self.model.set_input_embeddings(HostEmbedding(embedding.weight))

    def restore(self) -> None:
        """Leave the model as it was before offload_to_cpu() and prepare()."""
        self.prepared.clear()
        if self.resident is not None:
            self.resident.weight.data = self.resident.weight.data.to(self.resident_device)
            self.model.set_input_embeddings(self.resident)
        self.offloaded, self.resident = False, None

    def prepare(self, layers: int, *, fp8: bool, dequantized: bool) -> None:
        """Convert the frozen weights of the first layers once, instead of in each product.

        `fp8` adds to nf4 the scales with which it is multiplied in fp8. `dequantized` caches nf4 in the compute dtype,
        or with `fp8` nf4 and 16-bit weights in fp8. The numbers are those that each product would compute.
        """
        dtype = self.shape.dtype
        for layer in self.model.gpt_neox.layers[:layers]:
            for module in linear_modules(layer):
                base = module.get_base_layer()
                weight, shape = frozen_weight(base, dtype), (base.out_features, base.in_features)
                if fp8 and weight[0].dtype == torch.uint8:
                    weight = with_fp8_scales(weight, shape)
                self.prepared[base] = cache_dequantized(weight, shape, dtype) if dequantized else weight

    def skipped_flops(self, flops_per_weight: float) -> float:
        """FLOPs per token that this path skips, at `flops_per_weight` for each weight of a product.

        Skipped are the head and the last layer's products after its attention for tokens without a label, and the
        gradient of the first layer's input where the embedding is frozen.
        """
        behind = [*linear_modules(self.model.gpt_neox.layers[-1])[1:], self.model.get_output_embeddings()]
        weights = sum(linear.in_features * linear.out_features for linear in behind)
        return flops_per_weight * weights * (1 - self.max_label_tokens / self.tokens) + self.first_input_flops()

    def first_input_flops(self) -> float:
        """FLOPs per token (2 per weight) of the first layer's input gradient; 0 where the embedding is trained."""
        layer = self.model.gpt_neox.layers[0]
        into, _, up, _ = (linear.in_features * linear.out_features for linear in linear_modules(layer))
        return 2.0 * (into + up) * (not self.model.get_input_embeddings().weight.requires_grad)

    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.model.gpt_neox.final_layer_norm.weight.device

    def widths(self) -> list[int]:
        """out_features and in_features of each linear layer of a decoder layer."""
        linears = linear_modules(self.model.gpt_neox.layers[0])
        return [width for linear in linears for width in (linear.out_features, linear.in_features)]

    def dequantized_bytes(self, *, fp8: bool) -> int:
        """Bytes of all layers' weights as prepare(dequantized=True) caches them."""
        layers = self.model.gpt_neox.layers
        weights = sum(linear.out_features * linear.in_features for linear in linear_modules(layers[0]))
        return len(layers) * weights * (FP8_LAYOUTS if fp8 else self.shape.dtype.itemsize)

    def difference(self, tokens: int = 512) -> float:
        """The largest relative distance between the first layer's gradients on the fast path and on transformers' own.

        Compared, on random input and without dropout, are the gradients of the input and of A and B of the four LoRA
        layers. B is random here, because the zeros that it starts with would make the gradients of A zero.
        """
        layer, device = self.model.gpt_neox.layers[0], self.device()
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(tokens, self.model.config.hidden_size, generator=generator, device=device).to(self.shape.dtype)
        grad = torch.randn(x.shape, generator=generator, device=device).to(x.dtype)
        position_ids = torch.arange(tokens, device=device) % 100
        rotary, bounds = self.rotary(x, position_ids), document_bounds(position_ids)
        started = [(p, p.detach().clone()) for name, p in layer.named_parameters() if "lora_B" in name]
        for parameter, _ in started:
            parameter.data.normal_(0.0, 0.02, generator=generator)
        factors = [parameter for name, parameter in layer.named_parameters() if ".lora_" in name]
        training = layer.training
        layer.eval()
        try:
            with torch.autocast(device.type, self.shape.dtype, enabled=self.shape.dtype != torch.float32):
                cos_sin = rotary[0][None], rotary[1][None]
                plain = x.detach().requires_grad_()
                mask = document_mask(bounds[0])[None, None]
                y = layer(plain[None], attention_mask=mask, position_embeddings=cos_sin)
            wanted = torch.autograd.grad(y, (plain, *factors), grad[None].to(y.dtype))
            fast, shape = x.detach().requires_grad_(), dataclasses.replace(self.shape, dropout_threshold=0)
            seeds = torch.zeros(4, 1, dtype=torch.int64, device=device)
            weights = layer_weights(layer, shape.dtype, None, self.prepared)
            y = layer_forward(fast, weights, rotary, bounds, seeds, shape)
            got = torch.autograd.grad(y, (fast, *factors), grad)
        finally:
            layer.train(training)
            for parameter, value in started:
                parameter.data.copy_(value)
        through = wanted[0].float() - grad.float()  # without the residual connection
        sizes = [value.float().norm() for value in (through, *wanted[1:])]
        apart = [(one.float() - other.float()).norm() for one, other in zip(got, wanted, strict=True)]
        return (torch.stack(apart) / torch.stack(sizes)).max().item()

    def measure_layer(self) -> tuple[int, int, int]:
        """Bytes on the GPU: saved by a layer for its backward pass, needed by that pass besides, and of its input.

        Runs a layer forward and backward on random input, which also compiles it.
        """
        layer, device = self.model.gpt_neox.layers[0], self.device()
        width, dtype = self.model.config.hidden_size, self.shape.dtype
        x = torch.randn(self.tokens, width, dtype=dtype, device=device, requires_grad=True)
        position_ids = torch.arange(self.tokens, device=device) % 100
        rotary = self.rotary(x, position_ids)
        bounds, seeds = document_bounds(position_ids), torch.zeros(4, 1, dtype=torch.int64, device=device)
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        for _ in range(2):  # the first pass compiles
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            y = self.run_layer(
                x, layer_weights(layer, dtype, None, self.prepared), rotary, bounds, seeds, self.shape, recompute=False
            )
            kept = torch.cuda.memory_allocated() - before
            torch.autograd.grad(y, (x, *trained), torch.ones_like(y))
            passing = torch.cuda.max_memory_allocated() - before - kept
        return kept, passing, x.numel() * x.element_size()

    def run_layer(
        self, x: Tensor, weights: LayerWeights, rotary, bounds, seeds, shape, rows=None, *, recompute: bool
    ) -> Tensor:
        """layer_forward, which saves its activations, or with `recompute` only its input, for the backward pass."""
        inputs, training = (x, weights, rotary, bounds, seeds, shape, rows), torch.is_grad_enabled()
        # The last layer on selected rows and the first layer on frozen embeddings (whose input needs no gradient) are
        # different graphs: compiling these too would take longer than it saves.
        usual = rows is None and (x.requires_grad or not training)
        layer = self.layer if usual else layer_forward
        if not (recompute and training):
            return layer(*inputs)
        with save_on_cpu(pin_memory=x.is_cuda) if self.offloaded else nullcontext():
            return checkpoint(
                layer,
                *inputs,
                use_reentrant=False,
                preserve_rng_state=False,  # the dropout is a function of its seeds
                context_fn=lambda: (nullcontext(), recomputing()),
            )
