"""What the ranks of a run tell each other. Everything here works in a single process too, and costs nothing there.

Torch is imported where it is used: scripts check their flags before that, which takes seconds.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from llm_qa.console import Failed, StoppedEarly, UserError, is_main_process

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
OWN_ERRORS = (UserError, Failed, StoppedEarly)


def is_distributed() -> bool:
    """True when this process is one of several that have found each other."""
    if "torch" not in sys.modules:
        return False
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def shared_store():
    """The process group's key-value store, the same for every rank: prefixes, which differ between ranks, are off."""
    import torch.distributed

    store = torch.distributed.distributed_c10d._get_default_store()
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return store


def first_to_say(message: str) -> bool:
    """True in the process that tells the user of an error: of ranks that fail alike, the first one.

    A rank that fails alone (its GPU is full, its machine lacks a file) is heard like that. Before the ranks have found
    each other the first process of each machine speaks.
    """
    if not is_distributed():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the launcher's store outlives its workers
    try:
        return shared_store().add(f"llm_qa/said/{start}/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # it went with its host, and so did who could have spoken
        return True


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Sums of numbers over all ranks; every rank must call it at the same step. Free in a single process."""
    if not is_distributed():
        return values
    import torch

    on_device = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(on_device)
    return on_device.tolist()


def gather_over_ranks(value: float, device: torch.device) -> list[float]:
    """One number of every rank, in rank order; every rank must call it."""
    if not is_distributed():
        return [value]
    import torch.distributed

    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return sum_over_ranks([value if i == rank else 0.0 for i in range(ranks)], device)


def all_gather(text: str) -> list[str]:
    """What each rank says, in rank order; every rank must call it."""
    if not is_distributed():
        return [text]
    import torch.distributed

    told: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, text)
    return told


def run_on_main(work: Callable[[], T]) -> T:
    """What `work` gives in the main process, for every rank; what it raises there ends every rank.

    The project's own errors are the same everywhere; of any other the main process keeps the traceback, and the others
    fail with its sentence. Without that they would wait in the collective for a process that has left.
    """
    if not is_distributed():
        return work()
    import torch.distributed

    box: list = [None, None, None]
    raised: BaseException | None = None
    if is_main_process():
        try:
            box[0] = work()
        except BaseException as error:  # an interrupt too
            raised = error
            own = next((kind for kind in OWN_ERRORS if isinstance(error, kind)), None)
            told = str(error) if own else f"the first process failed with {type(error).__name__}: {error}"
            box[1:] = [(own or Failed).__name__, told]
    torch.distributed.broadcast_object_list(box, src=0)
    if raised is not None:
        raise raised
    if box[1] is not None:
        raise next(kind for kind in OWN_ERRORS if kind.__name__ == box[1])(box[2])
    return box[0]


def rank() -> int:
    """This process's number, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes `accelerate launch` has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_processes() -> None:
    """Give each process of a launch its own GPU, and let them wait for each other; nothing to do for one process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size() > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # batches may take long


def wait_for_all() -> None:
    """Return when every process has come here."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def end_processes() -> None:
    """Leave the group, so that no process ends while another still waits."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
