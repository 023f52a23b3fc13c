"""LoRA on a loaded base: the config, the preparation of a quantised base, and the report of trained parameters.

LoRA: Hu et al. 2021, arXiv:2106.09685. QLoRA: Dettmers et al. 2023, arXiv:2305.14314.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from llm_qa.config.recipe import Recipe
from llm_qa.console import UserError
from llm_qa.language import tr
from llm_qa.models.linear_modules import find_linear_modules, linear_layers, text_tower


def build_lora_config(model: torch.nn.Module, recipe: Recipe) -> LoraConfig:
    """LoRA on every linear layer but the head (or on the recipe's `lora_targets`).

    Names that peft would apply to the experts of a mixture are left out: see `meant_as_experts`.
    """
    targets = find_linear_modules(model, recipe.lora_targets)
    taken = [name for name in targets if meant_as_experts(model, name)]
    if taken and (recipe.lora_targets is not None or taken == targets):
        raise UserError(
            tr(
                "lora_targets {targets}: in {kind} peft applies these names to experts, which this "
                "project does not adapt: choose others with --lora-targets, or set --method full.",
                targets=", ".join(taken),
                kind=type(model).__name__,
            )
        )
    targets = [name for name in targets if name not in taken]
    adapted = {name: layer for name, layer in linear_layers(model).items() if name.rpartition(".")[2] in targets}
    kinds = {type(layer) for layer in adapted.values()}
    if text_tower(model) is not model:
        targets = sorted(adapted)  # the short names would also match layers of the other towers
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=kinds == {Conv1D},  # GPT-2 keeps its weights transposed
        bias="none",
    )


def meant_as_experts(model: torch.nn.Module, name: str) -> bool:
    """Whether peft would adapt the fused experts of a mixture when given the name of a linear layer.

    Experts of the Qwen2-MoE family were layers called `gate_proj`, `up_proj` and `down_proj` in transformers 4. peft
    translates these names into the parameters that transformers 5 fuses them into, also where other linear layers have
    them (shared experts, dense layers), and its parameter wrapper does not support dropout.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # one of several names that are fused into one parameter
        return True
    return name not in config.target_modules


def add_lora(model: torch.nn.Module, recipe: Recipe, dtype: torch.dtype = torch.float32) -> PeftModel:
    """Freeze the base and add LoRA layers, initialised with the recipe's seed (Trainer sets its seed only later).

    The LoRA weights are fp32 for every base, unless the engine needs one `dtype` for all (DeepSpeed, trl#6089).
    peft's prepare_model_for_kbit_training is not used: it would copy embeddings and head to fp32 (1.2 GB on the 12.8B
    model) and switch to reentrant checkpointing; under autocast LayerNorm runs in fp32 anyway.
    """
    set_seed(recipe.seed)
    model.requires_grad_(False)
    model = get_peft_model(model, build_lora_config(model, recipe))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def count_parameters(parameter: torch.nn.Parameter) -> int:
    """The number of weights in a parameter; a packed 4-bit parameter holds several in each stored element."""
    if type(parameter).__name__ == "Params4bit" and getattr(parameter, "quant_state", None) is not None:
        return int(torch.Size(parameter.quant_state.shape).numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ds_numel: ZeRO-3 keeps an empty shard


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """(total, trainable) parameters, each shared tensor once."""
    total = trainable = 0
    for parameter in model.parameters():
        count = count_parameters(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def linear_parameters(model: torch.nn.Module) -> int:
    """Weights that take part in matrix products on every token: the linear layers and the head."""
    layers = [*linear_layers(model).values(), model.get_output_embeddings()]
    return sum(count_parameters(layer.weight) for layer in layers)


def trainable_report(model: torch.nn.Module) -> str:
    """Parameters total and trainable, and the trainable ones by module name, as printed before training."""
    total, trainable = parameter_counts(model)
    by_module: dict[str, list[int]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = name.split(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
            by_module[module.rpartition(".")[2]].append(count_parameters(parameter))
    lines = [
        tr(
            "parameters: {total:,} in total, {trainable:,} trained ({share:.3%})",
            total=total,
            trainable=trainable,
            share=trainable / total,
        )
    ]
    for name, counts in sorted(by_module.items(), key=lambda item: -sum(item[1])):
        lines.append(
            tr("  {name}: {parameters:,} in {count} tensors", name=name, parameters=sum(counts), count=len(counts))
        )
    return "\n".join(lines)
