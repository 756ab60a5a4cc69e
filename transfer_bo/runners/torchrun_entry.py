"""One of several processes that train a trial together: a worker starts torchrun, which starts this.

The first rank reads what is to be trained and sends it to the others unchanged, floats with all digits; only
the first rank reports. It runs beside the worker, also if there are other nodes. A rank that fails reports
why before it ends; what the others report then, that a peer is lost, does not count. If a rank disappears
without a report the others end within seconds, and the trial returns to the queue.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

__all__ = ["main"]

STOP_SECONDS = 8.0
"""How long it may take, when asked to end, to finish a step and write a checkpoint."""

_PEER_WORDS = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "NCCL",
    "Timed out",
    "timeout",
)
"""Parts of an error's message if the cause lies with another rank."""

_FIRST = "transfer_bo/first"
"""Key in the store: the first of torchrun's ranks beside the worker, and the timeout in seconds."""

_FAILURE = "transfer_bo/failure"
"""Key in the store: outcome and message of a rank on another node than the worker's."""

_stop = threading.Event()
"""Set when this process was asked to end."""


def _end_soon() -> None:
    _stop.set()

    def end() -> None:
        from transfer_bo.runners.external_program import LOST, tell

        time.sleep(STOP_SECONDS)
        tell(outcome=LOST)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def main() -> int:
    """Train one trial.

    Returns:
        0 once the loss is reported, 1 after an ending without one.
    """
    signal.signal(signal.SIGTERM, lambda *_: _end_soon())
    import torch.distributed as dist

    from transfer_bo.errors import Diverged, Preempted
    from transfer_bo.runners.external_program import LOST, tell
    from transfer_bo.runners.objective import is_out_of_memory

    store, first, timeout = _meet()
    rank = (int(os.environ["RANK"]) - first) % int(os.environ["WORLD_SIZE"])
    try:
        _join(store, rank, timeout)
        loss = _train()
        if rank == 0:
            tell(loss=loss)
        dist.destroy_process_group()
        return 0
    except Diverged as error:
        tell(outcome="diverged", message=str(error))
    except Preempted as error:
        tell(outcome="preempted", message=str(error))
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, dist.DistError) or any(word in str(error) for word in _PEER_WORDS):
            _tell_failure(store, LOST, "")
        else:
            kind = "out_of_memory" if is_out_of_memory(error) else "error"
            _tell_failure(store, kind, f"Rank {rank}: {type(error).__name__}: {error}")

    # At once: destroying the group would wait for the peers, which are to see that this rank is gone.
    sys.stderr.flush()
    os._exit(1)


def _meet() -> tuple[Any, int, timedelta]:
    """The store of this group of processes, torchrun's first rank beside the worker, and the timeout.

    torchrun numbers nodes in no order that is known before: ours begins beside the worker.
    """
    from torch.distributed.rendezvous import rendezvous

    from transfer_bo.runners.external_program import INPUT

    store, rank, _ = next(iter(rendezvous("env://")))
    if INPUT in os.environ:
        run = json.loads(Path(os.environ[INPUT]).read_text())["study"]["run"]
        own_first = rank - int(os.environ["LOCAL_RANK"])
        store.set(_FIRST, json.dumps([own_first, run["rank_timeout"]]))
    first, seconds = json.loads(store.get(_FIRST))
    return store, first, timedelta(seconds=seconds)


def _join(store: Any, rank: int, timeout: timedelta) -> None:
    """Make the process group."""
    import torch
    import torch.distributed as dist

    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=dist.distributed_c10d.PrefixStore("transfer_bo/group", store),
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


def _tell_failure(store: Any, outcome: str, message: str) -> None:
    """Report a failure to the worker; from another node through the store, where ranks beside it look.

    A rank that has lost a peer reports what that peer has left there.
    """
    from transfer_bo.runners.external_program import LOST, OUTPUT, tell

    with contextlib.suppress(Exception):  # the store may be gone with its node
        if OUTPUT not in os.environ and outcome != LOST:
            store.set(_FAILURE, json.dumps([outcome, message]))
        elif outcome == LOST and store.check([_FAILURE]):
            outcome, message = json.loads(store.get(_FAILURE))
    tell(outcome=outcome, message=message)


def _train() -> float:
    from transfer_bo.runners.attempt import Attempt
    from transfer_bo.runners.external_program import INPUT, tell
    from transfer_bo.runners.task import StudyTask
    from transfer_bo.scale import Scale
    from transfer_bo.study_file import StudyFile
    from transfer_bo.training.ranks import Ranks

    ranks = Ranks()
    text = Path(os.environ[INPUT]).read_text() if ranks.rank == 0 else ""
    content: dict[str, Any] = json.loads(ranks.from_first(text))
    task = StudyTask(StudyFile.model_validate_json(json.dumps(content["study"])), _stop.is_set)
    attempt = Attempt(
        number=content["trial"],
        scale=Scale(content["scale"]),
        hps=content["hps"],
        seed=content["seed"],
        accumulate=content["accumulate"],
        owner_losses=content["attempt"] - 1,
        report=lambda progress, loss: tell(progress=progress, loss=loss),
        reports=content["reports"],
        speed=lambda tokens_per_second: tell(tokens_per_second=tokens_per_second),
        shares_trunk=content["shares_trunk"],
    )
    return task.train_here(attempt, Path(content["checkpoint"]) / "state.pt")


if __name__ == "__main__":
    sys.exit(main())
