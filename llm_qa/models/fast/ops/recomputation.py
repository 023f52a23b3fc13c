"""Whether a forward pass is a recomputation, which leaves out what the backward pass does not need.

torch.utils.checkpoint calls a function again with the same arguments: only its context says that it is the second time.
It is a variable of the thread, because autograd recomputes in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_active = ContextVar("recomputing", default=False)


@contextmanager
def recomputing() -> Iterator[None]:
    """Inside, a forward pass leaves out products that the backward pass does not need; their values are undefined."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def is_recomputing() -> bool:
    """True inside `recomputing`."""
    return _active.get()
