"""What becomes of every name that transformers.TrainingArguments has, as a recipe key or a flag.

Each name is in one of three tables, or a key of the recipe itself (seed). HONOURED is passed on and takes effect;
DECIDED_ELSEWHERE is set by another key, the accelerate config or the run; REFUSED would do nothing here, or break what
the project promises. A test fails when the installed transformers has a name that is in none; until it is put into one,
it is refused.
"""

from __future__ import annotations

from typing import Any

from llm_qa.config.training_argument_types import installed_names

HONOURED = frozenset(
    {
        # how long, how fast
        *("max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        # what is logged, and to whom
        *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica", "report_to"),
        *("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        # when it is validated and saved
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("save_strategy", "save_steps", "save_total_limit"),
        # how the machine is used
        *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
        *("tf32", "torch_empty_cache_steps", "ddp_timeout"),
    }
)

# Read by what --report-to names, and by nothing else.
OF_REPORTERS = ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
OF_WORKERS = ("dataloader_prefetch_factor", "dataloader_persistent_workers")

_LAUNCHER = "name it in an accelerate config and pass that to accelerate launch --config_file"
DECIDED_ELSEWHERE = {
    "output_dir": "use --run",
    "resume_from_checkpoint": "use --resume",
    "per_device_train_batch_size": "use micro_batch_size and global_batch_size",
    "per_device_eval_batch_size": "use micro_batch_size",
    "gradient_accumulation_steps": "it follows from global_batch_size, micro_batch_size and the number of GPUs",
    "gradient_checkpointing": "use recompute",
    "gradient_checkpointing_kwargs": "use recompute",
    "activation_checkpointing": "use recompute",
    "activation_checkpointing_kwargs": "use recompute",
    "bf16": "use compute_dtype",
    "fp16": "use compute_dtype",
    "bf16_full_eval": "validation is computed as training is: use compute_dtype",
    "fp16_full_eval": "validation is computed as training is: use compute_dtype",
    "data_seed": "use seed",
    "load_best_model_at_end": "use keep",
    "metric_for_best_model": "the best is the one with the lowest validation loss; use keep",
    "greater_is_better": "the best is the one with the lowest validation loss; use keep",
    "deepspeed": _LAUNCHER,
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "accelerator_config": _LAUNCHER,
    "local_rank": "accelerate launch gives each process its own",
    "use_cpu": "a GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it",
    "ddp_backend": "it is nccl on GPUs and gloo on CPUs",
    "dataloader_pin_memory": "it is on where there is a GPU",
    "disable_tqdm": "the run draws a bar of its own",
    "prediction_loss_only": "validation measures the loss alone",
    "label_names": "the labels of a pack are called labels",
    "remove_unused_columns": "the collator needs every column",
    "include_num_input_tokens_seen": "real tokens are always counted, padding never",
    "logging_nan_inf_filter": "a loss that is not finite always stops the run",
    "restore_callback_states_from_checkpoint": "the run restores its own",
    "enable_jit_checkpoint": "signals are handled by the run itself",
    "skip_memory_metrics": "training.json always has the peak memory of every process",
    "do_train": "train.py trains",
    "do_eval": "use eval_strategy, or scripts/evaluate.py",
    "do_predict": "use scripts/evaluate.py",
}

_LOSS_ALONE = "validation measures the loss alone, and keeps nothing that this would change"
_PACK_ORDER = "packs are of one length and come in the order of the seed"
_NO_HUB = "training works without the network; upload the finished folder yourself"
_COMPILE = "the fast path compiles its own layers, and transformers' own are not tested compiled"
_DDP = "a recipe says nothing of GPUs, and DDP runs with torch's defaults"
REFUSED = {
    "optim_args": "most optimizers ignore it in silence",
    "optim_target_modules": "most optimizers ignore it in silence; lora_targets narrows what is trained",
    "average_tokens_across_devices": "the loss is always a mean over the label tokens of all GPUs",
    "label_smoothing_factor": "Trainer would take the labels from the model, which the fast path and validation need",
    "neftune_noise_alpha": "its noise is scaled by the length of a sequence, which a pack is not",
    "full_determinism": "Trainer would set it after CUDA has started, and the fast path does not follow it",
    "use_cache": "a cache would let packed documents see each other",
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "use_liger_kernel": "it has no kernels for GPT-NeoX and would do nothing",
    "liger_kernel_config": "it has no kernels for GPT-NeoX and would do nothing",
    "auto_find_batch_size": "it would change the global batch in silence; --auto-micro-batch keeps it",
    "log_on_each_node": "the first process of all speaks, and no other",
    "eval_do_concat_batches": _LOSS_ALONE,
    "eval_use_gather_object": _LOSS_ALONE,
    "eval_accumulation_steps": _LOSS_ALONE,
    "include_for_metrics": _LOSS_ALONE,
    "batch_eval_metrics": _LOSS_ALONE,
    "save_only_model": "a run could not go on from a checkpoint without the optimizer's state",
    "save_on_each_node": "the first process saves, to a folder that all share",
    "ignore_data_skip": "a run that goes on would see the same pairs again, and others never",
    "parallelism_config": "data parallelism and ZeRO are what this project runs",
    "dataloader_drop_last": "an epoch is made up to whole updates, and no pair is dropped",
    "dataloader_in_order": "batches out of order could not be told from those of another run",
    "dataloader_multiprocessing_context": "workers share the tokens of this process, which only forked ones can",
    "train_sampling_strategy": _PACK_ORDER,
    "length_column_name": _PACK_ORDER,
    "group_by_length": _PACK_ORDER,
    "ddp_find_unused_parameters": _DDP,
    "ddp_bucket_cap_mb": _DDP,
    "ddp_broadcast_buffers": _DDP,
    "ddp_static_graph": _DDP,
    "debug": "a loss that is not finite always stops the run and names the pairs",
    "push_to_hub": _NO_HUB,
    "hub_token": "a recipe is copied into the run folder; a secret belongs into the environment (HF_TOKEN)",
    "hub_model_id": _NO_HUB,
    "hub_strategy": _NO_HUB,
    "hub_private_repo": _NO_HUB,
    "hub_always_push": _NO_HUB,
    "hub_revision": _NO_HUB,
}


def training_argument_types() -> dict[str, Any]:
    """Name -> type hint of the names that a recipe may set."""
    return {name: hint for name, hint in installed_names().items() if name in HONOURED}


def reason_against(name: str) -> str | None:
    """Why a recipe may not set a name of TrainingArguments; None for one that it may, or that there is not."""
    if reason := DECIDED_ELSEWHERE.get(name) or REFUSED.get(name):
        return reason
    if name not in HONOURED and name in installed_names():
        return "it is new in the installed transformers, and what it does here is not known"
    return None


def unread_problems(training: dict[str, Any]) -> list[str]:
    """What is wrong with names that only take effect together with others."""
    problems = []
    if training.get("report_to") in (None, "none", [], ["none"]):
        asked = [name for name in OF_REPORTERS if name in training]
        problems += [f"{name} would be ignored without report_to (leave out)" for name in asked]
    if not training.get("dataloader_num_workers"):
        asked = [name for name in OF_WORKERS if training.get(name)]
        problems += [f"{name} would be ignored without dataloader_num_workers (set it to 1 or more)" for name in asked]
    if str(training.get("eval_strategy", "")) == "epoch":
        problems.append(
            "eval_strategy epoch validates after an epoch's last checkpoint, so that a run that goes on from there "
            "would not be the same (set it to steps, and eval_steps)"
        )
    return problems
