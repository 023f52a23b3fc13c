"""What the fast path will do to a model, and the line that says what was installed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from llm_qa.language import tr
from llm_qa.models.fast.model import FastNeoX, HostEmbedding
from llm_qa.models.precision import SHORT, Precision

EXPANDABLE = "expandable_segments:True"  # the allocator then leaves fewer holes: 0.4 GiB less at 7 GiB


@dataclass(frozen=True)
class Plan:
    """What install() will do to a model; `plain_path_reason` says why it will do nothing.

    `fp8_products`: frozen weights are rounded to fp8 for their products. `dequantized_bytes`: size of a cached copy of
    them, 0 where each product dequantises anew. `short_of_memory`: there is too little memory for CUDA graphs. `why` is
    the report's reason for `recomputed`, `products` its words for the dtypes of products with frozen weights.
    """

    plain_path_reason: str | None = None
    recomputed: int = 0
    why: str = ""
    cuda_graphs: bool = False
    short_of_memory: bool = False
    offloaded: bool = False
    fp8_products: bool = False
    dequantized_bytes: int = 0
    products: str = ""


def report(fast: FastNeoX, plan: Plan, precision: Precision) -> str:
    """The line that says what was installed."""
    weights = precision.base
    if plan.dequantized_bytes:
        kind = "fp8" if plan.fp8_products else SHORT[precision.compute]
        gib = plan.dequantized_bytes / 2**30
        weights = tr("{weights} converted once to {gib:.1f} GiB of {kind}", weights=weights, gib=gib, kind=kind)
    line = tr(
        "fast path: attention inside documents, {tokens:,} packed tokens, compiled layers, {recomputed} of {layers} "
        "layers recomputed ({why}), {weights}, products in {products}",
        tokens=fast.tokens,
        recomputed=plan.recomputed,
        layers=len(fast.model.gpt_neox.layers),
        why=plan.why,
        weights=weights,
        products=plan.products,
    )
    if plan.short_of_memory:
        line += tr(", no CUDA graphs because memory is short")
    if plan.offloaded:
        line += tr(", {what} offloaded to CPU memory", what=what_is_offloaded(fast))
    settings = (os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    if plan.offloaded and not any(EXPANDABLE in setting for setting in settings):
        setting = f"PYTORCH_CUDA_ALLOC_CONF={EXPANDABLE}"
        line += tr("; if GPU memory still runs out, start with {setting}", setting=setting)
    return line


def what_is_offloaded(fast: FastNeoX) -> str:
    """The report's words for what offload_to_cpu() moved: a tied or trained embedding stays on the GPU."""
    moved = isinstance(fast.model.get_input_embeddings(), HostEmbedding)
    return tr("layers' inputs and the embedding" if moved else "layers' inputs")
