"""Refuses folders of weights that would run code, or read files from elsewhere, when they are loaded.

transformers gets the same instructions (`use_safetensors`, `trust_remote_code=False`), but peft would fall back to a
pickle, transformers would load an adapter found in a base folder, and its messages advise flags that do not exist here.
Only folders are checked: of a hub id only safetensors files are downloaded.
"""

from __future__ import annotations

from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.language import tr

ADAPTER_CONFIG = "adapter_config.json"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json", ADAPTER_CONFIG)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def refuse_code(folder: str | Path) -> None:
    """Raise UserError where a configuration names code that came with the checkpoint."""
    for name in CONFIGS:
        path = Path(folder) / name
        if not path.is_file():
            continue
        config = files.read_json(path)
        if not isinstance(config, dict):
            raise UserError(tr("{path} is not a configuration.", path=path))
        if config.get("auto_map"):
            raise UserError(
                tr(
                    "{path} asks to run code of its own (auto_map), which is never done: choose a "
                    "model that transformers knows, or remove auto_map where it does.",
                    path=path,
                )
            )


def refuse_unsafe_weights(folder: str | Path, *, adapter: bool = False) -> None:
    """Raise UserError for weights that are pickles or outside the folder, and for an adapter in place of a model."""
    folder = Path(folder)
    refuse_code(folder)
    if (folder / ADAPTER_CONFIG).is_file() != adapter:
        what = {"folder": folder, "file": ADAPTER_CONFIG}
        raise UserError(
            tr("{folder} has no {file}.", **what)
            if adapter
            else tr("{folder} is an adapter and not a model: it has an {file}.", **what)
        )
    if not any(folder.glob("*.safetensors")):
        found = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if not found:
            raise UserError(tr("{folder} has none: only .safetensors weights are loaded.", folder=folder))
        raise UserError(
            tr(
                "{folder} keeps its weights in {file}, a pickle, which can run code when it is read: only .safetensors "
                "weights are loaded.",
                folder=folder,
                file=found[0],
            )
        )
    for path in folder.glob("*.index.json"):
        index = files.read_json(path)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict):
            raise UserError(tr("{path} has no weight_map.", path=path))
        for name in names.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(
                    tr(
                        "{path} names {name!r}, which is not a .safetensors file of this folder.",
                        path=path,
                        name=str(name)[:100],
                    )
                )
