"""What the ranks of a run tell each other. Everything here works in a single process too, and costs nothing there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from llm_qa.console import UserError, is_main_process

T = TypeVar("T")


def together() -> bool:
    """True when this process is one of several that have found each other."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Sums of numbers over all ranks; every rank must call it at the same step. Free in a single process."""
    if not together():
        return values
    on_device = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(on_device)
    return on_device.tolist()


def tell_all(text: str) -> list[str]:
    """What each rank says, in rank order; every rank must call it."""
    if not together():
        return [text]
    told: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, text)
    return told


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives in the main process, for every rank; a UserError there is one everywhere."""
    if not together():
        return work()
    box: list = [None, None]
    if is_main_process():
        try:
            box[0] = work()
        except UserError as error:
            box[1] = str(error)
    torch.distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise UserError(box[1])
    return box[0]
