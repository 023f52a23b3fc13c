"""The choice between a fast path and the plain one: what it holds, and what speaks against a fast one on any model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError, say
from llm_qa.language import tr
from llm_qa.models.fast.ops.frozen_linear import FP8_WIDTH
from llm_qa.models.precision import BF16_CAPABILITY, SHORT, Precision

MAX_DIFFERENCE, MAX_DIFFERENCE_FP8 = 0.05, 0.2  # relative, of a layer's gradients from those of the plain path


@dataclass(frozen=True)
class FastPath:
    """The choice. `report` is the line that the user sees; `active` is False on the plain path."""

    active: bool
    report: str
    recomputed: int = 0
    skipped_flops: float = 0.0  # per token, see FastNeoX.skipped_flops
    fp8_products: bool = False  # of frozen weights
    inputs_on_host: bool = False  # of layers, in the machine's memory


def reason_of_machine(recipe: Recipe, capability: tuple[int, int] | None) -> str | None:
    """Why no model takes a fast path on a GPU of `capability` (None: CPU); None where one may."""
    if recipe.fast == "off":
        return "--fast off"
    if capability is None:
        return tr("no GPU")
    if capability < BF16_CAPABILITY:
        return tr(
            "compute capability {major}.{minor}, and the fast path's kernels need 8.0",
            major=capability[0],
            minor=capability[1],
        )
    return None


def say_that_it_is_tried() -> None:
    """Tell of the pause before a fast path is chosen."""
    say(
        tr(
            "fast path: compiling a layer and comparing its gradients with the plain ones, up to a "
            "minute the first time"
        )
    )


def products_as_stored(precision: Precision) -> str:
    """The report's words for products with frozen weights that are not rounded for them."""
    dtype = SHORT[precision.compute]
    return tr("fp8 and {dtype}", dtype=dtype) if precision.fp8_weights else dtype


def plain_path(reason: str, recipe: Recipe, precision: Precision) -> FastPath:
    """The choice of transformers' and peft's own code, with the reason. UserError for --compute-dtype fp8."""
    if recipe.compute_dtype == "fp8" and not precision.fp8_weights:
        raise UserError(
            tr(
                "compute_dtype fp8 needs the fast path, and this run takes the plain one "
                "({reason}): set --compute-dtype to {dtype}.",
                reason=reason,
                dtype=SHORT[precision.compute],
            )
        )
    report = tr(
        "plain path ({reason}): {recomputed}, {base}, products in {products}",
        reason=reason,
        recomputed=tr("every layer recomputed" if recipe.recompute != "none" else "no layer recomputed"),
        base=precision.base,
        products=products_as_stored(precision),
    )
    return FastPath(False, report)


def reason_of_difference(difference: float, precision: Precision) -> str | None:
    """The reason for the plain path where a layer's gradients differ too much from the plain ones, else None."""
    if difference > (MAX_DIFFERENCE_FP8 if precision.fp8_weights else MAX_DIFFERENCE):
        return tr(
            "on this GPU a layer's gradients differ by {share:.0%} from the plain ones, please report it",
            share=difference,
        )
    return None


def reason_of_widths(widths: Iterable[int]) -> str | None:
    """Why linear layers of these widths are not multiplied in fp8, or None."""
    odd = sorted(width for width in widths if width % FP8_WIDTH)
    if not odd:
        return None
    return tr(
        "fp8 products need widths that are multiples of {width}, and this model has {odd}", width=FP8_WIDTH, odd=odd[0]
    )


def fp8_unless(reason: str | None, difference: float, recipe: Recipe, precision: Precision) -> tuple[bool, str]:
    """Whether frozen weights are rounded to fp8 for their products, and the report's words for the products.

    They are not for a `reason`, or where a layer's gradients in fp8 differ too much from the plain ones. UserError
    where --compute-dtype fp8 was asked for and is not possible.
    """
    compute = SHORT[precision.compute]
    if not reason and difference > MAX_DIFFERENCE_FP8:
        reason = tr("in fp8 a layer's gradients differ by {share:.0%} from the plain ones", share=difference)
    if reason and recipe.compute_dtype == "fp8":
        raise UserError(
            tr("compute_dtype fp8 is not possible here: {reason}. Set --compute-dtype to bf16.", reason=reason)
        )
    if reason:
        return False, f"{compute} ({reason})"
    return True, tr(
        "fp8 and {dtype} (gradients within {share:.1%}; --compute-dtype {dtype} turns fp8 off)",
        dtype=compute,
        share=difference,
    )
