"""Decoding for GPT-NeoX with a static cache and fixed buffers, so that a step is one CUDA graph.

A row of the batch answers one prompt, stored from position 0 of its cache, so there is no padding on the left and a row
attends to the positions up to its own. Each row has sampling settings of its own (`sampling.py`). Who wants answers
uses `continuous_batching.py`, which gives a finished row the next prompt while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_qa.inference.merged_weights import choose_folding, linear, read_linear, reads_stored
from llm_qa.inference.sampling import Sampler, greedy
from llm_qa.inference.settings import GenerationSettings
from llm_qa.models.fast.layer import LayerWeights, linear_modules
from llm_qa.models.fast.ops import few_rows
from llm_qa.models.fast.ops.lora_attention import rotate
from llm_qa.models.precision import BF16_CAPABILITY, SHORT

ALIGNED = 8  # the memory-efficient attention kernel needs a mask of a multiple of so many positions
BUCKET = 64  # attention reads the cache up to a multiple of this, with one graph for each multiple
PREFILL_TOKENS = 16_384  # tokens of prompts in one prefill


class Request(NamedTuple):
    """A prompt of token ids to be answered; `number` tells apart answers that are drawn with one seed."""

    prompt: list[int]
    settings: GenerationSettings
    number: int = 0


class Cache(NamedTuple):
    """Keys and values of one layer, each (heads, rows, context, width)."""

    keys: Tensor
    values: Tensor


def reason_against(config, capability: tuple[int, int] | None) -> str | None:
    """Why the static decoder does not support this config; None where it does. `capability` None: CPU."""
    if config.model_type != "gpt_neox":
        return f"the model is a {config.model_type}, and the static decoder supports only gpt_neox"
    if not (config.use_parallel_residual and config.hidden_act == "gelu" and config.attention_bias):
        return "this GPT-NeoX has a different structure from polyglot-ko"
    if config.rope_parameters.get("rope_type", "default") != "default":
        return f"rotary positions of type {config.rope_parameters['rope_type']} change with the length"
    if capability is not None and capability < BF16_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, and the kernels need 8.0"
    return None


def cache_bytes(model: torch.nn.Module, rows: int, context: int) -> int:
    """Bytes of the keys and values of all layers, for `rows` sequences of `context` tokens."""
    positions, config = rows * -(-context // ALIGNED) * ALIGNED, model.config
    return 2 * config.num_hidden_layers * positions * config.hidden_size * model.dtype.itemsize


class StaticDecoder:
    """`generate` of a GPTNeoXForCausalLM, plain or under peft, with the adapter enabled or disabled as it is now.

    `rows` prompts are answered at once; a prompt and its answer have at most `context` tokens. The weights are read,
    and merged where memory allows (`folded` None), in the constructor; later changes of the model have no effect.
    `report` says what was chosen. On a GPU, steps are CUDA graphs.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: torch.nn.Module,
        rows: int,
        context: int,
        *,
        eos_token_id: int | list[int],
        pad_token_id: int,
        folded: bool | None = None,
    ):
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        neox, config = self.model.gpt_neox, self.model.config
        self.dtype, self.device = neox.embed_in.weight.dtype, neox.embed_in.weight.device
        self.rows, self.context = rows, -(-context // ALIGNED) * ALIGNED
        self.heads, self.eps, self.pad = config.num_attention_heads, config.layer_norm_eps, pad_token_id
        cache = (self.heads, rows, self.context, config.hidden_size // self.heads)
        modules = [module for layer in neox.layers for module in linear_modules(layer)]
        why = "as asked"
        if folded is None:
            folded, why = choose_folding(modules, self.dtype, rows, cache_bytes(model, rows, context))

        def norm(module) -> tuple[Tensor, Tensor]:
            return module.weight.detach().to(self.dtype), module.bias.detach().to(self.dtype)

        def tensors(layer) -> LayerWeights:
            norms = norm(layer.input_layernorm), norm(layer.post_attention_layernorm)
            return LayerWeights(*norms, *(read_linear(module, self.dtype, folded) for module in linear_modules(layer)))

        def zeros() -> Tensor:  # what is masked is multiplied by 0, which would not make a NaN harmless
            return torch.zeros(cache, dtype=self.dtype, device=self.device)

        self.layers = [tensors(layer) for layer in neox.layers]
        self.caches = [Cache(zeros(), zeros()) for _ in self.layers]
        self.final_norm = norm(neox.final_layer_norm)
        self.head = self.model.get_output_embeddings().weight.detach().to(self.dtype)

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)

        self.row_numbers = torch.arange(rows, device=self.device)
        self.eos = torch.tensor(eos_token_id, device=self.device).view(-1)  # any of them ends an answer
        self.tokens = numbers(rows)  # the last token of each row, not yet in the cache
        self.positions = numbers(rows)  # its position
        self.counts, self.limits = numbers(rows), numbers(rows)  # tokens generated, and their maximum
        self.finished = torch.ones(rows, dtype=torch.bool, device=self.device)
        self.generated = numbers(rows, self.context + 1)  # a finished row writes padding after its answer
        self.logits = torch.zeros(rows, len(self.head), dtype=self.dtype, device=self.device)
        self.sampler = Sampler(rows, len(self.head), self.device)
        self.graphed = self.device.type == "cuda"
        self.graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        weights = f"weights merged into {SHORT.get(self.dtype, self.dtype)}" if folded else "weights not merged"
        self.report = (
            f"static decoding: {rows:,} rows of {self.context:,} positions, {weights} ({why}), "
            + ("CUDA graphs" if self.graphed else "no graphs on the CPU")
        )  # fmt: skip

    # --- the model ----------------------------------------------------------------------------------------------------

    def _norm(self, x: Tensor, weight_bias: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *weight_bias, self.eps)

    def _norms(self, x: Tensor, layer: LayerWeights) -> list:
        """Both norms of a layer, each with LoRA's d of what reads it where it is computed in the same kernel."""
        if reads_stored(x, layer.query_key_value) and reads_stored(x, layer.dense_h_to_4h):
            factors = layer.query_key_value.a, layer.dense_h_to_4h.a
            return few_rows.norms(x, layer.attention_norm, layer.mlp_norm, self.eps, *factors)
        return [self._norm(x, layer.attention_norm), None, self._norm(x, layer.mlp_norm), None]

    def _hidden(self, tokens: Tensor, positions: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """All layers on `tokens` at `positions`, both (n,): (n, d), before the last norm.

        attend(cache, query, key, value), each (heads, n, width), keeps key and value and returns (heads, n, width).
        """
        x = self.model.gpt_neox.embed_in(tokens).to(self.dtype)
        rotary = [value[0].contiguous() for value in self.model.gpt_neox.rotary_emb(x[None], positions[None])]
        # not rotate(), which would add LoRA's update and the bias: the product already includes them
        nothing, no_bias = (x.new_zeros(len(x), 1), x.new_zeros(3 * x.shape[1], 1)), x.new_zeros(3 * x.shape[1])
        for layer, cache in zip(self.layers, self.caches, strict=True):
            for_attention, d_attention, for_mlp, d_mlp = self._norms(x, layer)
            packed = linear(for_attention, layer.query_key_value, d_attention)
            packed = rotate(packed, nothing, no_bias, rotary, self.heads, 0.0).view(len(x), self.heads, -1)
            attended = attend(cache, *packed.transpose(0, 1).chunk(3, dim=-1)).transpose(0, 1).reshape(x.shape)
            activated = F.gelu(linear(for_mlp, layer.dense_h_to_4h, d_mlp))
            x = linear(activated, layer.dense_4h_to_h) + linear(attended, layer.dense) + x
        return x

    def _ends(self, chosen: Tensor) -> Tensor:
        return (chosen[:, None] == self.eos).any(-1)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self._norm(x, self.final_norm), self.head)

    # --- prompts ------------------------------------------------------------------------------------------------------

    def check_fits(self, request: Request) -> None:
        """ValueError where a prompt and its longest answer exceed the context."""
        length, new = len(request.prompt), request.settings.max_new_tokens
        if length + new > self.context:
            raise ValueError(f"{length} tokens and {new} new ones exceed the context of {self.context}")

    @torch.inference_mode()
    def prefill(self, requests: dict[int, Request]) -> None:
        """Read the prompts of requests (row -> request) into the rows' cache, and choose each answer's first token.

        ValueError where a prompt and its longest answer exceed the context.
        """
        for request in requests.values():
            self.check_fits(request)
        items = list(requests.items())
        at_once = max(1, PREFILL_TOKENS // max(len(request.prompt) for request in requests.values()))
        for begin in range(0, len(items), at_once):
            self._prefill(items[begin : begin + at_once])

    def _prefill(self, items: list[tuple[int, Request]]) -> None:
        numbers, requests = zip(*items, strict=True)
        prompts, settings, streams = (list(values) for values in zip(*requests, strict=True))
        count, width = len(items), max(map(len, prompts))
        # padded on the right, where the prompt's tokens do not attend; the answer overwrites it in the cache
        padded = [prompt + [self.pad] * (width - len(prompt)) for prompt in prompts]
        tokens = torch.tensor(padded, device=self.device).view(-1)
        rows, lengths, limits = (
            torch.tensor(values, device=self.device)
            for values in (numbers, [*map(len, prompts)], [own.max_new_tokens for own in settings])
        )

        def attend(cache: Cache, *parts: Tensor) -> Tensor:
            query, key, value = (part.view(self.heads, count, width, -1) for part in parts)
            cache.keys[:, rows, :width], cache.values[:, rows, :width] = key, value
            return F.scaled_dot_product_attention(query, key, value, is_causal=True).flatten(1, 2)

        x = self._hidden(tokens, torch.arange(width, device=self.device).repeat(count), attend)
        logits = self._logits(x.view(count, width, -1)[torch.arange(count, device=self.device), lengths - 1])
        self.sampler.start(numbers, prompts, settings, streams)
        chosen = logits.argmax(-1)
        if not all(map(greedy, settings)):
            chosen = self.sampler.choose(logits, rows, torch.zeros_like(lengths))
        self.logits[rows], self.tokens[rows], self.generated[rows, 0] = logits, chosen, chosen
        self.positions[rows], self.counts[rows], self.limits[rows] = lengths, 1, limits
        self.finished[rows] = self._ends(chosen) | (limits <= 1)
        self.sampler.mark(self.tokens)

    @torch.inference_mode()
    def stop(self, rows: Iterable[int]) -> None:
        """End the rows' answers where they are: a row writes padding until it gets the next request."""
        for row in rows:
            self.finished[row] = True
            self.sampler.greedy_rows[row] = True

    # --- steps --------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, attended: int) -> None:
        """One more token for every unfinished row; all positions are below `attended`. Does not synchronise."""
        kind = attended, not all(self.sampler.greedy_rows)
        if not self.graphed:
            self._step(*kind)
        elif kind in self.graphs:
            self.graphs[kind].replay()
        else:  # run this step without a graph as a warm-up, then capture it
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(*kind)
            torch.cuda.current_stream().wait_stream(side)
            graph, others = torch.cuda.CUDAGraph(), next(iter(self.graphs.values()), None)
            with torch.cuda.graph(graph, pool=others.pool() if others else None):  # records without running
                self._step(*kind)
            self.graphs[kind] = graph

    def _step(self, attended: int, sampled: bool) -> None:
        """The operations of `step`: buffers keep their addresses, and no value is read back from the GPU.

        `sampled`: some rows have other settings than greedy.
        """
        unseen = torch.arange(attended, device=self.device) > self.positions[:, None]
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device).masked_fill_(unseen, -torch.inf)

        def attend(cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache.keys[:, self.row_numbers, self.positions] = key
            cache.values[:, self.row_numbers, self.positions] = value
            keys, values = cache.keys[:, :, :attended], cache.values[:, :, :attended]
            return F.scaled_dot_product_attention(query[:, :, None], keys, values, mask[None, :, None])[:, :, 0]

        self.logits.copy_(self._logits(self._hidden(self.tokens, self.positions, attend)))
        every = slice(None)
        chosen = self.sampler.choose(self.logits, every, self.counts) if sampled else self.logits.argmax(-1)
        chosen = chosen.masked_fill(self.finished, self.pad)
        if sampled:
            self.sampler.mark(chosen)
        self.generated[self.row_numbers, self.counts] = chosen
        self.tokens.copy_(chosen)
        going = ~self.finished
        self.counts += going
        self.positions += going
        self.finished |= self._ends(chosen) & going | (self.counts >= self.limits)

    def reach(self, furthest: int) -> int:
        """The number of cache positions that a step reads when the furthest row is at position `furthest`."""
        return min(self.context, -(-(furthest + 1) // BUCKET) * BUCKET)

    # --- comparison with the plain path -------------------------------------------------------------------------------

    @torch.inference_mode()
    def difference(self, steps: int = 3) -> float:
        """The relative distance of the logits after a random prompt and some steps from the model's own forward pass.

        The largest of up to three rows of different lengths. Leaves the decoder empty.
        """
        generator, eos = torch.Generator().manual_seed(0), self.eos.clone()
        lengths = [length for length in (3, 11, 24) if length + steps < self.context][: self.rows]
        vocabulary = self.model.get_input_embeddings().num_embeddings
        prompts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
        self.eos.fill_(-1)  # no answer ends
        settings = GenerationSettings(max_new_tokens=steps + 1)
        self.prefill({row: Request(prompt, settings) for row, prompt in enumerate(prompts)})
        got = [self.logits[: len(prompts)].clone()]
        for _ in range(steps):
            self.step(self.reach(0))
        got.append(self.logits[: len(prompts)].clone())
        largest = 0.0
        for row, prompt in enumerate(prompts):
            tokens = self.generated[row, : steps + 1].tolist()
            whole = torch.tensor([prompt + tokens[:-1]], device=self.device)
            wanted = self.model(input_ids=whole, use_cache=False).logits[0].float()
            for logits, place in zip(got, (len(prompt) - 1, -1), strict=True):
                apart = (logits[row].float() - wanted[place]).norm() / wanted[place].norm()
                largest = max(largest, apart.item())
        self.eos.copy_(eos)
        self.stop(range(self.rows))
        return largest
