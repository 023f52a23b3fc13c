"""The dtypes of base weights and of matrix products, decided from the recipe and the GPU's compute capability.

fp8 (e4m3) is used only for products with frozen weights; LoRA's own products, norms, attention, GELU and the loss are
always computed in the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import BitsAndBytesConfig

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.language import tr

BF16_CAPABILITY = (8, 0)  # Ampere. torch.cuda.is_bf16_supported() is true on a T4, by slow emulation.
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
BITSANDBYTES_CAPABILITY = (7, 5)  # Turing: what bitsandbytes' CUDA 13 build contains
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHORT = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Precision:
    """The decision: `weights` is the dtype of loaded weights (with nf4: of those that are not quantised)."""

    weights: torch.dtype
    compute: torch.dtype
    nf4: bool
    double_quant: bool
    why: str
    fp8_weights: bool = False  # the frozen weights are kept in fp8
    fp8_products: bool = False  # the fast path may multiply frozen weights in fp8, if its check passes
    trains_in: torch.dtype = torch.float32  # of LoRA's weights; with full training the dtype is `weights`
    storage: torch.dtype | None = None  # dtype that packed 4-bit weights are stored as; None: uint8

    @property
    def base(self) -> str:
        """The base weights' format in a word: nf4, fp8, bf16, fp16 or fp32."""
        return "nf4" if self.nf4 else "fp8" if self.fp8_weights else SHORT[self.weights]

    @property
    def autocast(self) -> str | None:
        """TrainingArguments' switch that runs the forward pass in the compute dtype: 'bf16', 'fp16' or None."""
        return None if self.compute == torch.float32 else SHORT[self.compute]

    @property
    def quantization_config(self) -> BitsAndBytesConfig | None:
        """What from_pretrained is given; None where the base is not quantised."""
        if not self.nf4:
            return None
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=self.compute,
            bnb_4bit_quant_storage=self.storage,
        )


def check_fp8_units(recipe: Recipe, capability: tuple[int, int] | None) -> None:
    """Raise UserError where compute_dtype fp8 is asked for and the GPU of `capability` (None: CPU) has no fp8 units.

    Only for training: a run trained in fp8 answers and is evaluated in bf16 or fp32 on any machine.
    """
    if recipe.compute_dtype == "fp8" and (capability is None or capability < FP8_CAPABILITY):
        raise UserError(
            tr(
                "compute_dtype fp8 needs a GPU of compute capability 8.9 (Ada, Hopper or newer) "
                "and this is {where}: set --compute-dtype to auto.",
                where=describe(capability),
            )
        )


def describe(capability: tuple[int, int] | None) -> str:
    """(8, 9) -> 'a GPU of compute capability 8.9'; None -> 'the CPU'."""
    if capability is None:
        return tr("the CPU")
    return tr("a GPU of compute capability {major}.{minor}", major=capability[0], minor=capability[1])


def gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the current CUDA GPU; None without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def resolve_precision(recipe: Recipe, capability: tuple[int, int] | None) -> Precision:
    """Choose dtypes for a GPU of `capability` (None: CPU). Raises UserError for what that GPU cannot do."""
    where = describe(capability)
    has_bf16 = capability is None or capability >= BF16_CAPABILITY
    for key in ("compute_dtype", "base_precision"):
        if getattr(recipe, key) == "bf16" and not has_bf16:
            wide = "auto" if key == "compute_dtype" else "16bit"
            raise UserError(
                tr(
                    "{key} bf16 needs compute capability 8.0 and this is {where}: set --{flag} to {wide} or fp16.",
                    key=key,
                    where=where,
                    flag=key.replace("_", "-"),
                    wide=wide,
                )
            )
    if capability is None and "fp16" in (recipe.compute_dtype, recipe.base_precision):
        raise UserError(
            tr(
                "fp16 products are for GPUs and this is the CPU: set --compute-dtype to auto and "
                "--base-precision to another value than fp16."
            )
        )
    if recipe.base_precision == "nf4" and capability is not None and capability < BITSANDBYTES_CAPABILITY:
        raise UserError(
            tr(
                "base_precision nf4 needs compute capability 7.5 (bitsandbytes' CUDA 13 build) and "
                "this is {where}: set --base-precision to 16bit, or use a T4 or newer.",
                where=where,
            )
        )
    if recipe.base_precision == "fp8" and capability is not None and capability < FP8_CAPABILITY:
        raise UserError(
            tr(
                "base_precision fp8 needs compute capability 8.9 (Ada, Hopper or newer) and this "
                "is {where}: set --base-precision to nf4 or 16bit.",
                where=where,
            )
        )
    half = "bf16" if has_bf16 else "fp16"
    compute: str = recipe.compute_dtype
    if compute in ("auto", "fp8"):  # the dtype of all but fp8 products
        compute = "fp32" if capability is None else half
    if recipe.base_precision in ("nf4", "fp8"):
        weights = compute
    elif recipe.base_precision == "16bit":
        weights = half
    else:
        weights = recipe.base_precision
    if recipe.method == "full" and weights == "fp16":
        raise UserError(
            tr(
                "method full with base_precision {base_precision} would keep fp16 weights on "
                "{where}, where updates vanish in rounding: set --base-precision to fp32 (products "
                "still run in fp16).",
                base_precision=recipe.base_precision,
                where=where,
            )
        )
    if weights in ("bf16", "fp16") and compute == "fp32" and recipe.compute_dtype in ("auto", "fp8"):
        compute = weights  # 16-bit weights on a CPU: computing in fp32 would need a copy of each
    has_fp8 = capability is not None and capability >= FP8_CAPABILITY and compute == "bf16"
    wanted = recipe.compute_dtype in ("auto", "fp8") and recipe.method == "lora" and weights != "fp32"
    fp8_products = recipe.base_precision == "fp8" or (has_fp8 and wanted and recipe.fast == "auto")
    base, products = tr("base {precision}", precision=recipe.base_precision), compute
    if recipe.base_precision == "16bit":
        base = tr("{base} kept as {dtype}", base=base, dtype=weights)
    if fp8_products and capability is not None:
        products = tr("fp8 with frozen weights and {dtype}", dtype=compute)
    return Precision(
        weights=DTYPES[weights],
        compute=DTYPES[compute],
        nf4=recipe.base_precision == "nf4",
        double_quant=recipe.double_quant,
        fp8_weights=recipe.base_precision == "fp8",
        fp8_products=fp8_products,
        why=tr("{base}, products in {products} on {where}", base=base, products=products, where=where),
    )
