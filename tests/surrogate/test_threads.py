"""One thread inside, as many as before afterwards."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_info

from transfer_bo.surrogate.threads import one_thread


def test_threads_are_limited_and_restored() -> None:
    """Those of PyTorch and of every thread pool, also where what is inside fails."""
    before, inside = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        with one_thread():
            inside = {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())}
            raise KeyError
    except KeyError:
        assert ({1}, 2) == (inside, torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
