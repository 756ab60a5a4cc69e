"""One of several processes that train a trial together: a worker starts torchrun, which starts this.

The first rank reads what is to be trained and sends it to the others unchanged, floats with all digits; only
the first rank reports. A rank that fails reports why before it ends; what the others report then, that a
peer is lost, does not count. If a rank disappears without a report the others end within seconds, and the
trial returns to the queue.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
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
    import torch
    import torch.distributed as dist

    from transfer_bo.errors import Diverged, Preempted
    from transfer_bo.runners.external_program import LOST, tell
    from transfer_bo.runners.objective import is_out_of_memory

    rank = int(os.environ.get("RANK", "0"))
    try:
        on_cuda = torch.cuda.is_available()
        if on_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_cuda else "gloo")
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
            tell(outcome=LOST)
        else:
            kind = "out_of_memory" if is_out_of_memory(error) else "error"
            tell(outcome=kind, message=f"Rank {rank}: {type(error).__name__}: {error}")

    # At once: destroying the group would wait for the peers, which are to see that this rank is gone.
    sys.stderr.flush()
    os._exit(1)


def _train() -> float:
    from transfer_bo.runners.external_program import INPUT, tell
    from transfer_bo.runners.task import Attempt, StudyTask
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
    )
    return task.train_here(attempt, Path(content["checkpoint"]) / "state.pt")


if __name__ == "__main__":
    sys.exit(main())
