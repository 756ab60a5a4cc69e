"""Several workers on one GPU: a small model leaves most of it idle.

Workers take turns over the GPUs. How many may share one is `run.workers_per_gpu`; "auto" goes by the number
of parameters of the largest run. Whether their memory suffices is checked in `memory_check`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from transfer_bo.parametrization.builds import build_meta
from transfer_bo.runners.task import StudyTask, Task
from transfer_bo.runners.torchrun import ranks_here
from transfer_bo.runners.worker_pool import gpu_groups, visible_devices
from transfer_bo.scale import Scale

__all__ = ["usable_workers", "workers_by_size"]

BY_PARAMETERS = (
    (3e6, 8),
    (3e7, 4),
    (1e8, 2),
)
"""Up to so many parameters, so many workers per GPU; one for larger models. Not measured yet: chosen so that
matrix products of all workers together are about as large as one needs to fill a GPU. `studies/gpu/check.py`
measures trials per hour by the number of workers."""


def workers_by_size(parameters: float) -> int:
    """Workers that may share a GPU, by the number of parameters of what they train."""
    return next((workers for limit, workers in BY_PARAMETERS if parameters <= limit), 1)


def usable_workers(task: Task, scales: Sequence[Scale], workers: int) -> int:
    """How many of some workers can work at a time on this machine's GPUs; all of them without GPUs.

    Args:
        task: The study's task; programs of the user's own share no GPU, unless a number is given.
        scales: Where runs are planned.
        workers: As many as are wanted.
    """
    run, visible = task.file.run, visible_devices()
    if visible is None or run.runner == "ray":  # Ray assigns GPUs itself
        return workers

    if run.workers_per_gpu != "auto":
        per_gpu = run.workers_per_gpu
    elif isinstance(task, StudyTask):
        largest = max(scales, key=lambda scale: task.cost(scale) / float(scale.tokens))
        model = build_meta(task.build, largest)
        per_gpu = workers_by_size(sum(math.prod(p.shape) for p in model.parameters()))
    else:
        per_gpu = 1
    return min(workers, per_gpu * gpu_groups(ranks_here(task.file), visible))
