"""The run folder: what is written into it before and after training, and the check of the saved weights."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from llm_qa import files
from llm_qa.config.recipe import Recipe, load_stored_recipe, stored_recipe
from llm_qa.console import UserError, say
from llm_qa.data.chat_template import PLAIN_CHAT_TEMPLATE
from llm_qa.data.prompts import show_prompt
from llm_qa.language import tr
from llm_qa.migrations import read_json, stamped
from llm_qa.models.loading import final_folder, save_tokenizer
from llm_qa.models.portable import add_rotary_keys
from llm_qa.models.safety import ADAPTER_CONFIG
from llm_qa.planning.this_gpu import device_name
from llm_qa.training.checkpoint.manifest import flush, read_manifest, sha256_from_disk
from llm_qa.training.checkpoint.resume import all_checkpoints, set_later_aside
from llm_qa.training.checkpoint.storage import disk_problem
from llm_qa.training.run_signature import check_same

# The files of a checkpoint that from_pretrained reads.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", ADAPTER_CONFIG)
LEFTOVERS = ".*.part"  # staged files that a killed process has not renamed
LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "torch-optimi",
    "datasets",
    "evaluate",
    "numpy",
)


def environment() -> dict:
    """Versions and hardware. Environment variables are left out, as they may hold secrets."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device_name(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def open_run(
    run_dir: str | Path,
    recipe: Recipe,
    data_dir: Path,
    signature: dict,
    *,
    resume: str,
    checkpoint: Path | None = None,
    allowed: list[str] | None = None,
) -> None:
    """Make the run folder and write recipe.yaml and environment.json.

    A run, and the checkpoint that it resumes from, must have the same run signature (`run_signature.py`): another
    recipe, data or number of processes is refused with the differences unless its kind is in `allowed`. With resume
    'never' an existing run is set aside under a new name; nothing is deleted.
    """
    run_dir = Path(run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(tr("--run {run_dir} is a file: name a folder.", run_dir=run_dir))
    if checkpoint is not None:
        before = read_manifest(checkpoint)["about"]["run_signature"]
        before = {**before, "recipe": stored_recipe(before["recipe"], str(checkpoint)).to_dict()}
        check_same(before, signature, allowed or [], checkpoint)
        if not is_finished(run_dir, recipe):
            set_later_aside(checkpoint)
    elif (run_dir / files.RECIPE).exists():
        if resume == "never":
            set_aside(run_dir)
        elif (run_dir / files.LOG).exists():  # without logged steps there is nothing to mix up
            known = read_json(run_dir / files.ENVIRONMENT).get("data_sha256")
            before = {**signature, "recipe": load_stored_recipe(run_dir / files.RECIPE).to_dict(), "data_sha256": known}
            check_same(before, signature, allowed or [], run_dir)
    elif run_dir.is_dir() and not is_beginning(run_dir):
        raise UserError(tr("--run {run_dir} is not empty and is not a run: name another folder.", run_dir=run_dir))
    run_dir.mkdir(parents=True, exist_ok=True)
    for half_written in run_dir.glob(LEFTOVERS):
        shutil.rmtree(half_written) if half_written.is_dir() else half_written.unlink()
    about = {"data": str(data_dir), "data_sha256": signature["data_sha256"], **environment()}
    files.write_json(run_dir / files.ENVIRONMENT, stamped(about))
    files.write_text(
        run_dir / files.RECIPE, yaml.safe_dump(stamped(recipe.to_dict()), allow_unicode=True, sort_keys=False)
    )


def is_beginning(run_dir: Path) -> bool:
    """True for a folder that is empty, or of a run that was killed before it wrote recipe.yaml."""
    return all(path.name == files.ENVIRONMENT or path.match(LEFTOVERS) for path in run_dir.iterdir())


def is_finished(run_dir: str | Path, recipe: Recipe) -> bool:
    """True when the run reached its last step and its final weights are in place, those that `recipe.keep` asks for.

    A finished run whose `keep` was changed ends anew from its newest checkpoint, which takes no step; without any
    checkpoint it stays as it is.
    """
    run_dir = Path(run_dir)
    training = read_json(run_dir / files.TRAINING) if (run_dir / files.TRAINING).is_file() else {}
    if training.get("finished") is not True or not final_folder(run_dir, recipe).is_dir():
        return False
    return ended_with(run_dir, training) in (recipe.keep, None) or not all_checkpoints(run_dir / files.CHECKPOINTS)


def ended_with(run_dir: Path, training: dict) -> str | None:
    """Which `keep` the final weights of a finished run are of; None where both are the same, or it is not known."""
    if "kept" not in training:  # a run of an earlier version
        return None
    if training["kept"]:
        return None if training["kept"]["step"] == training["steps"] else "best"
    log = files.read_jsonl(run_dir / files.LOG) if (run_dir / files.LOG).is_file() else []
    return "last" if any("validation_loss" in line for line in log) else None


def set_aside(run_dir: Path) -> None:
    """Rename an existing run to `<name>.old-<n>`."""
    number = 1
    while (old := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
        number += 1
    run_dir.rename(old)
    say(tr("the run that was in {run_dir} is now {old}", run_dir=run_dir, old=old))


def save_final(
    model: PreTrainedModel | PeftModel,
    weights: dict[str, torch.Tensor] | Path,
    tokenizer,
    run_dir: Path,
    recipe: Recipe,
    summary: dict,
) -> Path:
    """Save the adapter or the model with its tokenizer and card, staged then renamed; returns the folder.

    `weights` are whole tensors by their names in `model`, whose own may be partitioned (ZeRO-3), or a checkpoint whose
    files are copied unchanged. UserError where the disk is full or not writable; the checkpoints remain.
    """
    final = final_folder(run_dir, recipe)
    staged = final.with_name(f".{final.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        write_final(model, weights, tokenizer, staged, recipe, summary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(staged, final)
        flush(final.parent)
    except Exception as error:
        shutil.rmtree(staged, ignore_errors=True)
        if not (problem := disk_problem(error)):
            raise
        if isinstance(weights, Path):
            needed = sum(path.stat().st_size for path in weight_files(weights))
        else:
            needed = sum(tensor.nbytes for tensor in weights.values())
        raise UserError(
            tr(
                "{final} cannot be written ({problem}). It needs {needed:,} bytes: make room, or "
                "correct the folder, and run the same command again, which goes on from the newest "
                "checkpoint.",
                final=final,
                problem=problem,
                needed=needed,
            )
        ) from error
    return final


def write_final(
    model: PreTrainedModel | PeftModel,
    weights: dict[str, torch.Tensor] | Path,
    tokenizer,
    staged: Path,
    recipe: Recipe,
    summary: dict,
) -> None:
    """Write the final folder to `staged`, flush it to the disk and check it. Errors are not caught."""
    staged.mkdir()
    if isinstance(weights, Path):
        for path in weight_files(weights):
            shutil.copyfile(path, staged / path.name)
        check_copied(weights, staged)
    else:
        # save_pretrained removes written tensors from the dictionary.
        model.save_pretrained(staged, state_dict=dict(weights))
        check_saved(model, weights, staged)
    if isinstance(model, PeftModel):  # peft writes a set, in a different order each time
        config = files.read_json(staged / ADAPTER_CONFIG)
        files.write_json(staged / ADAPTER_CONFIG, {**config, "target_modules": sorted(config["target_modules"])})
    if recipe.prompt != "chat":
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE  # not the base's own, which was not trained
    save_tokenizer(tokenizer, staged)
    if recipe.method == "full":
        add_rotary_keys(staged)
    files.write_text(staged / "README.md", model_card(recipe, summary, show_prompt(tokenizer, "<질문>")))
    for path in (*staged.iterdir(), staged):
        flush(path)


def weight_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that from_pretrained reads: weights and their configs, without the training state."""
    return [path for pattern in WEIGHTS for path in sorted(checkpoint.glob(pattern))]


def check_copied(checkpoint: Path, folder: Path) -> None:
    """Read copied weights back and compare them with the checkpoint's manifest; RuntimeError names what differs."""
    expected = read_manifest(checkpoint)["files"]
    copied = [path.name for path in checkpoint.glob("*.safetensors")]
    lost = [name for name in copied if sha256_from_disk(folder / name) != expected[name]["sha256"]]
    if not copied or lost:
        raise RuntimeError(
            tr(
                "{folder} does not hold what {checkpoint} does: {lost}.",
                folder=folder,
                checkpoint=checkpoint,
                lost=", ".join(lost) or tr("it has no weights"),
            )
        )


def check_saved(model: PreTrainedModel | PeftModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Read the saved tensors back and compare them with `weights`, bit for bit; RuntimeError names what differs.

    Guards against adapters that were saved empty or sharded (trl#4416, peft#2892). The names on the disk may
    differ from the model's: transformers renames some weights when it loads them (GPT-NeoX's head is stored as
    `embed_out`), fuses others (Mixtral's experts), and reverts both when it saves. Tied weights are stored once.
    """
    shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in model.named_parameters() if p.requires_grad}
    wrong = [name for name, shape in shapes.items() if name in weights and weights[name].shape != shape]
    absent = [name for name in shapes if name not in weights]
    if wrong or absent:
        raise RuntimeError(tr("These weights are incomplete: {names}.", names=", ".join([*wrong, *absent][:5])))
    if isinstance(model, PeftModel):
        expected = get_peft_model_state_dict(model, state_dict=weights)
    else:
        expected = revert_weight_conversion(model, weights)
    saved: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        saved.update(load_file(path))
    stored_at = {expected[name].data_ptr() for name in expected.keys() & saved.keys()}

    def is_saved(name: str, tensor: torch.Tensor) -> bool:
        if name in saved:
            return torch.equal(tensor.cpu(), saved[name])
        return tensor.data_ptr() in stored_at

    lost = [name for name, tensor in expected.items() if tensor.numel() == 0 or not is_saved(name, tensor)]
    if not expected or lost:
        raise RuntimeError(
            tr(
                "{folder} does not hold what was trained: {lost}.",
                folder=folder,
                lost=", ".join(lost[:5]) or tr("nothing was saved"),
            )
        )


def model_card(recipe: Recipe, summary: dict, prompt: str) -> str:
    """README.md of the saved weights: base, data, settings, the prompt of a question, how to use them."""
    settings = "\n".join(f"| {key} | `{value}` |" for key, value in recipe.to_dict().items())
    best = summary["kept"]
    kept = f"; its weights are those of step {best['step']:,}, with the lowest validation loss" if best else ""
    tags = "- lora\n" if recipe.method == "lora" else ""
    base = "" if recipe.model == "embedded" else f"base_model: {recipe.model}\n"
    return f"""---
language: ko
{base}library_name: {"peft" if recipe.method == "lora" else "transformers"}
pipeline_tag: text-generation
tags:
- question-answering
{tags}---

# {"LoRA adapter" if recipe.method == "lora" else "Model"} for Korean question answering

Trained from `{recipe.model}` on {summary["pairs"]:,} question-answer pairs of {summary["records"]:,} records for
{summary["steps"]:,} steps ({summary["tokens"]:,} tokens){kept}. It answers this prompt and then ends with `eos`:

```text
{prompt}
```

| setting | value |
| --- | --- |
{settings}
"""
