"""A checkpoint's tensors one after another, read and written in the memory of one shard."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.models.safety import refuse_unsafe_weights
from llm_qa.training.checkpoint.manifest import flush

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_shards(model: str | Path) -> list[Path]:
    """The safetensors files of a folder, or of a hub id (downloaded where the cache does not have them), in order.

    Raises UserError where there are none, or where they are unsafe to read.
    """
    model = str(model)
    if Path(model).is_dir():
        refuse_unsafe_weights(model)

    def find(name: str) -> str | None:
        return cached_file(model, name, _raise_exceptions_for_missing_entries=False)

    try:
        if whole := find(WEIGHTS):
            return [Path(whole)]
        if index := find(INDEX):
            names = sorted(set(files.read_json(index)["weight_map"].values()))
            return [Path(path) for path in map(find, names) if path]
    except OSError as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"The weights of {model!r} cannot be read: {first_line}") from error
    raise UserError(f"{model!r} has neither {WEIGHTS} nor {INDEX}: only .safetensors weights are read.")


def read_tensors(shards: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every tensor of the files. Each is read when it is asked for and not kept."""
    for path in shards:
        with safe_open(path, framework="pt") as shard:
            names = shard.keys()
            for name in names:
                yield name, shard.get_tensor(name)


def tensor_names(shards: Iterable[Path]) -> list[str]:
    """The names of every tensor of the files; no tensor is read."""
    names: list[str] = []
    for path in shards:
        with safe_open(path, framework="pt") as shard:
            names.extend(shard.keys())
    return names


def write_shards(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> int:
    """Write tensors as one file, or as `model-00001-of-00003.safetensors` ... with an index, as transformers does.

    A file is written as soon as the next tensor would make it larger than `shard_bytes`, so that no more than one lies
    in memory, and is read back: RuntimeError names a tensor that is not what was written. Returns the bytes of all.
    """
    staged: list[tuple[Path, list[str]]] = []
    os.umask(umask := os.umask(0o022))
    waiting: dict[str, torch.Tensor] = {}
    size = total = 0

    def write() -> None:
        path = folder / f"shard-{len(staged)}.safetensors"
        save_file(waiting, path, metadata={"format": "pt"})
        path.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read
        flush(path)
        check_written(path, waiting)
        staged.append((path, list(waiting)))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > shard_bytes:
            write()
            size = 0
        waiting[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(staged) == 1:
        os.replace(staged[0][0], folder / WEIGHTS)
        return total
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(staged, 1):
        name = f"model-{number:05}-of-{len(staged):05}.safetensors"
        os.replace(path, folder / name)
        weight_map |= dict.fromkeys(names, name)
    files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total


def check_written(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare a file with the tensors that were written to it, bit for bit."""
    for name, tensor in read_tensors([path]):
        if not torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8)):
            raise RuntimeError(f"{path} does not hold the {name} that was written.")


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, renamed to `folder` when all is written, and deleted if anything fails.

    What a killed export left there is deleted first. UserError where another export is writing to it.
    """
    staged = folder.with_name(f".{folder.name}.part")
    with contextlib.ExitStack() as leaving:
        try:
            staged.mkdir(parents=True, exist_ok=True)
            held = os.open(staged, os.O_RDONLY)
            leaving.callback(os.close, held)
            lock_folder(held, folder)
            leaving.callback(shutil.rmtree, staged, ignore_errors=True)
            for left in staged.iterdir():
                left.unlink()
            yield staged
            os.replace(staged, folder)
            flush(folder.parent)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror or error}): set --out to another folder."
            ) from error


def lock_folder(opened: int, folder: Path) -> None:
    """Hold an opened folder, in which `folder` is prepared, until it is closed; UserError where another holds it.

    The system lets go of it when a process ends. A file system without locks is not locked.
    """
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"--out {folder} is being written by another export: wait for it, or name another folder."
        ) from None
    except OSError as error:
        say(f"{folder.parent} has no file locks ({error.strerror}): start no second export to {folder}")
