"""Every private part of a library that the project overrides, reads or sets, as the installed version has it.

None of them is promised to stay. Each is listed once, with where it is used and what to look at when it has changed;
the last two tests find uses that are not listed.
"""

import argparse
import ast
import dataclasses
import importlib.metadata
import inspect
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import ROOT
from transformers import Trainer, TrainingArguments
from transformers.models.gpt_neox import GPTNeoXConfig, GPTNeoXForCausalLM

from llm_qa.training.checkpoint.trainer_hooks import CheckpointingTrainer
from llm_qa.training.trainer import PackTrainer

HOOKS, TRAINER = "llm_qa/training/checkpoint/trainer_hooks.py", "llm_qa/training/trainer.py"
INTERNALS = "llm_qa/training/internals.py"


@dataclasses.dataclass(frozen=True)
class Internal:
    """A private part of a library. `holds` is what is relied on; it may raise as well as be False."""

    library: str
    name: str
    holds: Callable[[], bool]
    used_by: str
    look_at: str


def parameters(function: Callable) -> list[str]:
    """Names of a function's parameters, without self."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def is_called(name: str) -> bool:
    """Whether Trainer still calls a method of its own, without which an override of it would do nothing."""
    return f"self.{name}(" in inspect.getsource(Trainer)


def is_overridable(name: str, *expected: str) -> bool:
    """Whether Trainer calls a method, with the parameters that its override names."""
    return is_called(name) and parameters(getattr(Trainer, name)) == list(expected)


def decides_number_of_gpus() -> bool:
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    arguments._n_gpu = 3
    return arguments.n_gpu == 3


def has_deepspeed_config() -> bool:
    from accelerate.utils import DeepSpeedPlugin
    from transformers.integrations import HfDeepSpeedConfig

    fields = {field.name for field in dataclasses.fields(DeepSpeedPlugin)}
    return "hf_ds_config" in fields and isinstance(HfDeepSpeedConfig({"x": 1}).config, dict)


def gathers_without_frozen() -> bool:
    from deepspeed.runtime.engine import DeepSpeedEngine

    return parameters(DeepSpeedEngine._zero3_consolidated_16bit_state_dict) == ["exclude_frozen_parameters"]


def zero_optimizers_set(name: str, stages: tuple[int, ...] = (2, 3)) -> bool:
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    sources = {2: stage_1_and_2, 3: stage3}
    return all(f"self.{name} = " in inspect.getsource(sources[stage]) for stage in stages)


def zero_parameters_have(name: str) -> bool:
    from deepspeed.runtime.zero import partition_parameters

    return f"param.{name} = " in inspect.getsource(partition_parameters)


def is_settable_on_the_config() -> bool:
    config = GPTNeoXConfig()
    config._attn_implementation = "eager"
    return config._attn_implementation == "eager"


def repacks_by_an_attribute() -> bool:
    from bitsandbytes.nn import Linear4bit

    return hasattr(Linear4bit(4, 4, device="meta"), "support_avx512bf16_for_cpu")


def is_the_4_bit_parameter() -> bool:
    from bitsandbytes.nn import Params4bit

    return "quant_state" in parameters(Params4bit.__new__)


def store_is_found_below_prefixes() -> bool:
    inner = torch.distributed.HashStore()
    return torch.distributed.PrefixStore("x", inner).underlying_store is not None


def multiplies_scaled() -> bool:
    names = {argument.name for argument in torch.ops.aten._scaled_mm.default._schema.arguments}
    return {"scale_a", "scale_b", "bias", "out_dtype", "use_fast_accum"} <= names


def asserts_without_waiting() -> bool:
    torch._assert_async(torch.tensor(True), "said when it is not")
    return True


def multiplies_lists() -> bool:
    return torch.equal(torch._foreach_mul([torch.ones(2)], 2.0)[0], torch.full((2,), 2.0))


def copies_lists() -> bool:
    kept = [torch.zeros(2)]
    torch._foreach_copy_(kept, [torch.ones(2)])
    return torch.equal(kept[0], torch.ones(2))


def takes_norms_of_lists() -> bool:
    return torch._foreach_norm([torch.tensor([3.0, 4.0])])[0].item() == 5.0


def maps_trees() -> bool:
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf + 1, (1, [2])) == (2, [3])


def opens_a_sheet() -> bool:
    from openpyxl.worksheet._read_only import ReadOnlyWorksheet

    return parameters(ReadOnlyWorksheet._get_source) == []


def converts_targets() -> bool:
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    return parameters(convert_peft_config_for_transformers) == ["peft_config", "model", "conversions"]


def reverts_conversion() -> bool:
    from transformers.core_model_loading import revert_weight_conversion

    return parameters(revert_weight_conversion) == ["model", "state_dict"]


def loads_task_files() -> bool:
    pytest.importorskip("lm_eval", reason="KoBEST's harness is optional")
    from lm_eval.tasks._yaml_loader import load_yaml

    return callable(load_yaml)


def transformers(name: str, holds: Callable[[], bool], used_by: str, look_at: str) -> Internal:
    return Internal("transformers", name, holds, used_by, look_at)


def has_flags_and_groups() -> bool:
    parser = argparse.ArgumentParser()
    group = parser.add_argument_group("group")
    group.add_argument("--flag", help="what it does")
    return parser._actions[-1].help == "what it does" and parser._action_groups[-1].title == "group"


def wraps_text_in_help() -> bool:
    formatter = argparse.HelpFormatter
    calls = inspect.getsource(formatter)
    known = parameters(formatter._split_lines), parameters(formatter._fill_text)
    return known == (["text", "width"], ["text", "width", "indent"]) and "self._fill_text(" in calls


EVALUATION_LOOP = ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix")
OVERRIDES = [
    transformers(
        "_save_checkpoint",
        lambda: is_overridable("_save_checkpoint", "model", "trial"),
        HOOKS,
        "what a save of Trainer's writes and deletes, and into which folder",
    ),
    transformers(
        "_get_output_dir",
        lambda: is_overridable("_get_output_dir", "trial"),
        HOOKS,
        "whether all that a save writes goes into the folder that this method names",
    ),
    transformers("_run_epoch", lambda: is_called("_run_epoch"), HOOKS, "how a run resumes at its last step"),
    transformers(
        "_finalize_training", lambda: is_called("_finalize_training"), HOOKS, "what comes after the last update"
    ),
    transformers(
        "_load_from_checkpoint",
        lambda: is_overridable("_load_from_checkpoint", "resume_from_checkpoint", "model"),
        TRAINER,
        "how the weights of a checkpoint are read",
    ),
    transformers(
        "_load_optimizer_and_scheduler",
        lambda: is_overridable("_load_optimizer_and_scheduler", "checkpoint"),
        TRAINER,
        "when the optimizer's state is read on resume",
    ),
    transformers(
        "evaluation_loop",
        lambda: (
            parameters(Trainer.evaluation_loop) == [*EVALUATION_LOOP]
            and "self.evaluation_loop" in inspect.getsource(Trainer.evaluate)
        ),
        TRAINER,
        "what evaluate() makes of the loop's result",
    ),
    transformers("train", lambda: parameters(Trainer.train)[0] == "resume_from_checkpoint", HOOKS, "how train() ends"),
]
USED = [
    transformers("_prepare_inputs", lambda: parameters(Trainer._prepare_inputs) == ["inputs"], TRAINER, "its inputs"),
    transformers(
        "_tr_loss",
        lambda: "self._tr_loss += tr_loss_step" in inspect.getsource(Trainer),
        INTERNALS,
        "where Trainer sums the loss that it logs",
    ),
    transformers(
        "_globalstep_last_logged",
        lambda: "self.state.global_step - self._globalstep_last_logged" in inspect.getsource(Trainer),
        INTERNALS,
        "over how many steps Trainer averages the loss that it logs",
    ),
    transformers("_n_gpu", decides_number_of_gpus, INTERNALS, "how Trainer decides to split batches over GPUs"),
    transformers("hf_ds_config", has_deepspeed_config, INTERNALS, "where the engine's config is before it is made"),
    transformers(
        "_attn_implementation", is_settable_on_the_config, "llm_qa/models/isolation.py", "how attention is chosen"
    ),
    transformers(
        "_supports_sdpa",
        lambda: GPTNeoXForCausalLM._supports_sdpa is True,
        "llm_qa/models/isolation.py",
        "how an architecture says that it has sdpa",
    ),
    transformers(
        "_no_split_modules",
        lambda: "GPTNeoXLayer" in GPTNeoXForCausalLM._no_split_modules,
        "llm_qa/training/zero3.py",
        "how an architecture names its decoder layers",
    ),
    transformers(
        "_init_weights",
        lambda: parameters(GPTNeoXForCausalLM._init_weights) == ["module"],
        "llm_qa/models/random_weights.py",
        "how one module is initialised",
    ),
    transformers(
        "revert_weight_conversion",
        reverts_conversion,
        "llm_qa/training/run_folder.py",
        "what names and shapes weights have on disk",
    ),
    Internal(
        "peft",
        "convert_peft_config_for_transformers",
        converts_targets,
        "llm_qa/models/lora.py",
        "which target names peft takes for fused experts",
    ),
    Internal(
        "deepspeed",
        "_zero3_consolidated_16bit_state_dict",
        gathers_without_frozen,
        INTERNALS,
        "how whole weights are gathered from their shares",
    ),
    *(
        Internal(
            "deepspeed",
            name,
            lambda name=name: zero_optimizers_set(name),
            INTERNALS,
            "how a ZeRO optimizer tells that gradients were not finite",
        )
        for name in ("_global_grad_norm", "overflow")
    ),
    Internal(
        "deepspeed",
        "check_grad_overflow",
        lambda: zero_optimizers_set("check_grad_overflow", stages=(2,)),
        INTERNALS,
        "in which precisions ZeRO-2 skips an update of gradients that are not finite",
    ),
    *(
        Internal(
            "deepspeed",
            name,
            lambda name=name: zero_parameters_have(name),
            "llm_qa/models/lora.py",
            "where the size of a whole parameter stands beside its share",
        )
        for name in ("ds_numel", "ds_shape")
    ),
    Internal(
        "bitsandbytes",
        "support_avx512bf16_for_cpu",
        repacks_by_an_attribute,
        "llm_qa/models/loading.py",
        "whether a validation on a CPU still repacks 4-bit weights for a kernel without a backward",
    ),
    Internal(
        "bitsandbytes", "Params4bit", is_the_4_bit_parameter, "llm_qa/models/lora.py", "what knows a weight's shape"
    ),
    Internal(
        "torch",
        "_get_default_store",
        lambda: parameters(torch.distributed.distributed_c10d._get_default_store) == [],
        "llm_qa/distributed.py",
        "how to reach the process group's store",
    ),
    Internal(
        "torch",
        "underlying_store",
        store_is_found_below_prefixes,
        "llm_qa/distributed.py",
        "how to reach a store without its prefixes",
    ),
    Internal("torch", "_scaled_mm", multiplies_scaled, "llm_qa/models/fast/ops/fp8.py", "how fp8 is multiplied"),
    Internal(
        "torch", "_assert_async", asserts_without_waiting, "llm_qa/models/fast/model.py", "checks inside CUDA graphs"
    ),
    Internal("torch", "_foreach_mul", multiplies_lists, "llm_qa/models/fast/cuda_graphs.py", "copies of many tensors"),
    Internal("torch", "_foreach_copy_", copies_lists, "llm_qa/models/fast/cuda_graphs.py", "copies of many tensors"),
    Internal(
        "torch",
        "_foreach_norm",
        takes_norms_of_lists,
        "llm_qa/training/callbacks/non_finite.py",
        "norms of many tensors",
    ),
    Internal("torch", "_pytree", maps_trees, "llm_qa/models/fast/sharded.py", "how nested tuples are mapped"),
    Internal("openpyxl", "_get_source", opens_a_sheet, "llm_qa/data/readers/xlsx.py", "how a sheet's XML is opened"),
    Internal("lm_eval", "_yaml_loader", loads_task_files, "llm_qa/evaluation/kobest.py", "how a task file is read"),
    Internal("argparse", "_actions", has_flags_and_groups, "llm_qa/console.py", "where a parser keeps its flags"),
    Internal("argparse", "_split_lines", wraps_text_in_help, "llm_qa/console.py", "how the help of a flag is filled"),
    Internal("argparse", "_fill_text", wraps_text_in_help, "llm_qa/console.py", "how a description is filled"),
    Internal("argparse", "_action_groups", has_flags_and_groups, "llm_qa/console.py", "where it keeps groups"),
]
DOCUMENTED = {"_exit"}  # os._exit


@pytest.mark.parametrize("internal", [*OVERRIDES, *USED], ids=lambda internal: f"{internal.library} {internal.name}")
def test_the_installed_library_has_what_is_relied_on(internal):
    try:
        holds = internal.holds()
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        holds = f"{type(error).__name__}: {error}"
    if holds is not True:
        of_python = internal.library in sys.stdlib_module_names
        version = platform.python_version() if of_python else importlib.metadata.version(internal.library)
        pytest.fail(
            f"{internal.name} of {internal.library} {version} is not what {internal.used_by} relies on"
            f"{f' ({holds})' if holds else ''}: look there, and in {internal.library}, at {internal.look_at}.",
            pytrace=False,
        )


def test_every_override_of_trainer_is_listed():
    own = {name for kind in (CheckpointingTrainer, PackTrainer) for name in vars(kind) if not name.startswith("__")}
    assert {name for name in own if hasattr(Trainer, name)} == {internal.name for internal in OVERRIDES}


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_names(path: Path) -> tuple[set[str], set[str]]:
    """(private names that a file reads or sets, those that it defines itself)."""
    used, defined = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            (defined if of_self and isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            used.add(getattr(node.args[1], "value", None))
        elif isinstance(node, ast.ImportFrom):
            used |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return set(filter(is_private, used)), set(filter(is_private, defined))


def test_every_private_name_that_is_used_is_listed():
    paths = [*(ROOT / "llm_qa").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    used, defined = (set().union(*names) for names in zip(*map(private_names, paths), strict=True))
    listed = {internal.name for internal in [*OVERRIDES, *USED]}
    assert used - defined - DOCUMENTED - listed == set(), "list it above, with what is relied on"
    private = {name for name in listed if is_private(name)}
    assert private - used - defined == set(), "nothing uses it any more: take it off the list"
