"""Whether an architecture other than GPT-NeoX takes a fast path: compare, measure, install, report with the reason."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.language import tr
from llm_qa.models.fast.budget import MemoryBudget, layers_to_recompute
from llm_qa.models.fast.choice import (
    FastPath,
    fp8_unless,
    plain_path,
    products_as_stored,
    reason_of_difference,
    reason_of_machine,
    reason_of_widths,
    say_that_it_is_tried,
)
from llm_qa.models.fast.decoder import FastDecoder, first_layer_inputs, layer_forward, random_documents
from llm_qa.models.precision import SHORT, Precision
from llm_qa.planning import this_gpu

COMPARED = 512  # tokens
SAME_LOGITS = 0.02  # relative; bf16 rounds by less


def choose_decoder_path(
    causal: torch.nn.Module,
    recipe: Recipe,
    precision: Precision,
    size: tuple[int, int],
    zero_stage: int,
    capability: tuple[int, int] | None,
    measure: Callable[[FastDecoder], MemoryBudget],
) -> FastPath:
    """Plan the fast path of a causal LM with LoRA, and install it where it is valid.

    `size` is that of a forward pass: tokens, and the most that have a label. `measure` is given the path while it is
    installed. Where the plain path is chosen, the model is left as it was. UserError as for `choose_fast_path`.
    """
    if reason := reason_against(causal, recipe, precision, zero_stage, capability):
        return plain_path(reason, recipe, precision)
    name = type(causal).__name__
    say_that_it_is_tried()
    try:
        fast = FastDecoder(causal, precision.compute, *size, compiled=True)
        if logits_difference(fast) > SAME_LOGITS:
            return plain_path(tr("{name} changes its head's logits", name=name), recipe, precision)
        if reason := reason_of_difference(gradient_difference(fast), precision):
            return plain_path(reason, recipe, precision)
        fp8_products, products = choose_products(fast, recipe, precision)
        with fast.installed():
            budget = measure(fast)
    except Exception as error:  # each architecture, the compiler and Triton have errors of their own
        if isinstance(error, (UserError, torch.OutOfMemoryError)):
            raise
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(".:")[:200]
        reason = tr("{name} does not take the fast path: {error}", name=name, error=told)
        return plain_path(reason, recipe, precision)
    fast.recomputed, why = layers_to_recompute(budget, recipe, len(fast.layers))
    fast.install()
    line = tr(
        "fast path of {name}: attention inside documents, {tokens:,} packed tokens, compiled layers, kernels of LoRA "
        "and the loss, {recomputed} of {layers} layers recomputed ({why}), {base}, products in {products}",
        name=name,
        tokens=fast.tokens,
        recomputed=fast.recomputed,
        layers=len(fast.layers),
        why=why,
        base=precision.base,
        products=products,
    )
    skipped = fast.skipped_flops(this_gpu.flops_per_token(1, False))
    return FastPath(True, line, fast.recomputed, skipped, fp8_products)


def reason_against(
    model: torch.nn.Module,
    recipe: Recipe,
    precision: Precision,
    zero_stage: int,
    capability: tuple[int, int] | None,
) -> str | None:
    """Why a causal LM takes the plain path; None where the fast path may be tried."""
    if reason := reason_of_machine(recipe, capability):
        return reason
    name = type(model).__name__
    if recipe.method != "lora":
        return tr("{name} has a fast path for method lora alone", name=name)
    if zero_stage == 3:
        return tr("{name} has no fast path under ZeRO-3", name=name)
    if not recipe.pack_length:
        return tr("the fast path of {name} is for packs, and pack_length is 0", name=name)
    if precision.weights != precision.compute:
        weights, compute = SHORT[precision.weights], SHORT[precision.compute]
        return tr("the base is kept in {weights} and products are in {compute}", weights=weights, compute=compute)
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    if odd := [module for module in adapted if not isinstance(module.get_base_layer(), torch.nn.Linear)]:
        kind = type(odd[0].get_base_layer()).__name__
        return tr("the linear layers of {name} are of class {kind}", name=name, kind=kind)
    own = [module for key, module in model.named_modules() if ".lora_" not in key]
    if any(isinstance(module, torch.nn.Dropout) and module.p for module in own) or any(
        getattr(module, "attention_dropout", 0.0) for module in own
    ):
        return tr("the model's own dropout is on")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        return tr("the head of {name} has a bias", name=name)
    return None


def choose_products(fast: FastDecoder, recipe: Recipe, precision: Precision) -> tuple[bool, str]:
    """Round nf4 weights to fp8 for their products where the precision asks for it: whether, and the report's words.

    Raises UserError where --compute-dtype fp8 was asked for and is not possible.
    """
    difference = 0.0
    if precision.fp8_weights or not precision.fp8_products:
        return False, products_as_stored(precision)
    bases = [module.get_base_layer() for module in fast.linears]
    reason = reason_of_widths({width for base in bases for width in (base.in_features, base.out_features)})
    if not reason and not precision.nf4:
        reason = tr(
            "a base kept in {base} is multiplied as it is, and --base-precision fp8 in fp8", base=precision.base
        )
    if not reason:
        fast.round_to_fp8()
        difference = gradient_difference(fast)
    is_fp8, words = fp8_unless(reason, difference, recipe, precision)
    if not is_fp8:
        fast.keep_16_bits()
    return is_fp8, words


def logits_difference(fast: FastDecoder) -> float:
    """The relative distance between the model's logits and its head's product with the last hidden states.

    It is large where a model scales or bounds its logits, which the loss of the fast path would leave out.
    """
    documents = random_documents(fast, COMPARED // 4)
    with torch.no_grad():
        hidden = fast.model.base_model(**documents, use_cache=False).last_hidden_state
        logits = fast.usual(**documents, use_cache=False).logits.float()
        product = hidden @ fast.model.get_output_embeddings().weight.to(hidden.dtype).T
    return ((product.float() - logits).norm() / logits.norm()).item()


def gradient_difference(fast: FastDecoder) -> float:
    """The largest relative distance between the first layer's gradients on the fast path and on transformers' own.

    Compared, on random input and without dropout, are the gradients of the input and of every LoRA factor. B is random
    here, because the zeros that it starts with would make the gradients of A zero.
    """
    layer, device, model = fast.layers[0], fast.device(), fast.model
    generator = torch.Generator(device).manual_seed(0)
    factors = {name: parameter for name, parameter in layer.named_parameters() if ".lora_" in name}
    started = [(p, p.detach().clone()) for name, p in factors.items() if "lora_B" in name]
    for parameter, _ in started:
        parameter.data.normal_(0.0, 0.02, generator=generator)
    (x, *plain), plainly = first_layer_inputs(fast, fast.usual, COMPARED)
    x = torch.randn(x.shape, generator=generator, device=device, dtype=torch.float32).to(fast.dtype)
    grad = torch.randn(x.shape, generator=generator, device=device).to(x.dtype)

    def gradients(inputs, named) -> list[torch.Tensor]:
        start = x.detach().requires_grad_()
        y = layer_forward(layer, start, *inputs, **named)
        return [g.float() for g in torch.autograd.grad(y, (start, *factors.values()), grad.to(y.dtype))]

    training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, fast.dtype, enabled=fast.dtype != torch.float32):
            wanted = gradients(plain, plainly)
        with fast.installed():
            (_, *inputs), named = first_layer_inputs(fast, fast.hidden, COMPARED)
            got = gradients(inputs, named)
    finally:
        model.train(training)
        for parameter, value in started:
            parameter.data.copy_(value)
    sizes = [(wanted[0] - grad.float()).norm(), *(value.norm() for value in wanted[1:])]  # without the residual
    apart = [(one - other).norm() for one, other in zip(got, wanted, strict=True)]
    return (torch.stack(apart) / torch.stack(sizes)).max().item()
