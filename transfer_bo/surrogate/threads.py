"""How many threads PyTorch, NumPy and SciPy use for the arrays of a fit, which are small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, and afterwards as many as before; also a decorator, as `@one_thread()`.

    An operation on some hundred runs takes microseconds. To share it among threads takes longer than that,
    and where other programs use the cores each operation waits for the slowest thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # NumPy's and SciPy's linear algebra
            yield
    finally:
        torch.set_num_threads(before)
