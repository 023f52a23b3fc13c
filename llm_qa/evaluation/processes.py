"""Evaluation on several processes: who is who, and waiting for each other. No tensor is ever sent."""

from __future__ import annotations

import os
from datetime import timedelta


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
