"""Refuse runs that cannot fit into the memory at hand, before anything is started."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from transfer_bo.errors import StudyFileError, TrainingError
from transfer_bo.parametrization.builds import build_meta
from transfer_bo.runners.task import StudyTask, Task
from transfer_bo.runners.torchrun import ranks_here
from transfer_bo.runners.worker_pool import gpu_groups, visible_devices
from transfer_bo.scale import Scale
from transfer_bo.verification.room import Room, room

if TYPE_CHECKING:
    from transfer_bo.verification.step_memory import Memory

__all__ = ["check_memory"]

BYTES_PER_PARAMETER = 16
"""Weight, gradient and two averages of AdamW in float32."""

BYTES_PER_FLOP = 1.0
"""Activations take fewer bytes than this per FLOP of the forward pass: of the reference transformer .06 at
width 16, fewer at larger widths. What fits by this bound is not looked at more closely, which takes seconds.
"""


def check_memory(task: Task, scales: Iterable[Scale], workers: int) -> None:
    """Refuse a study whose largest run cannot fit; nothing is checked where the memory is not known.

    A trial that runs out of memory is tried once more in twice as many parts: what fits then is not refused.

    Args:
        task: The study's task; of a program of the user's own nothing is known.
        scales: Where runs are planned.
        workers: How many of them run at a time on this machine.

    Raises:
        StudyFileError: Naming the scale, what it needs, what is there, and what to do.
    """
    visible = visible_devices()
    at_hand = room(visible)
    if at_hand is None or not isinstance(task, StudyTask) or task.file.run.runner == "ray":
        return
    scale = max(scales, key=lambda scale: task.cost(scale) / float(scale.tokens) * float(scale.batch))
    together = 1 if at_hand.on_gpu else ranks_here(task.file)  # processes of a run that share the memory
    groups = 1 if visible is None else gpu_groups(ranks_here(task.file), visible)
    at_a_time = max(1, math.ceil(workers / groups))  # runs that share the memory
    if _bound(task, scale) * together * at_a_time <= at_hand.usable:
        return

    parts = 2 * task.file.training.accumulate
    needed = _memory(task, scale, parts, at_hand)
    if needed is None or needed.total * together * at_a_time <= at_hand.usable:
        return

    if needed.total * together <= at_hand.usable:
        advice = f"set run.workers = {groups * int(at_hand.usable // (needed.total * together))}"
    else:
        advice = _advice(task, scale, parts, together, at_hand)
    times = together * at_a_time
    processes = f" in each of {times} processes" if times > 1 else ""
    place = "the GPU's memory" if at_hand.on_gpu else "main memory"
    i = None if scale == task.file.target else task.file.proxies.index(scale) % len(task.file.ladder.rungs)
    key = "ladder.target" if i is None else f"ladder.rungs[{i}]"
    raise StudyFileError(
        f"{task.file.path}: {key} = {dict(scale)}: training needs {needed.total / 1e9:.3g} GB{processes} "
        f"({needed.persistent / 1e9:.3g} GB of them whatever the batch), but {at_hand.usable / 1e9:.3g} GB "
        f"of {place} can be used; {advice}."
    )


def _bound(task: StudyTask, scale: Scale) -> float:
    """Bytes that a run surely does not exceed, found without running a step."""
    tokens_per_step = float(scale.batch) * task.file.data.context
    forward_flops = task.flops_per_token(scale) / 3 * tokens_per_step
    parameters = sum(parameter.numel() for parameter in build_meta(task.build, scale).parameters())
    return BYTES_PER_FLOP * forward_flops + BYTES_PER_PARAMETER * parameters


def _memory(task: StudyTask, scale: Scale, parts: int, at_hand: Room) -> Memory | None:
    """Of one process; None if the model cannot run without values."""
    from transfer_bo.verification.dry_run import dry_run  # slow to import

    run, training = task.file.run, task.file.training
    try:
        found = dry_run(
            task.parametrization(scale),
            task.file.data.context,
            hps=task.space.defaults,
            ranks=run.ranks,
            parallel=run.parallel,
            accumulate=parts,
            activation_checkpointing=training.activation_checkpointing,
            autocast=training.precision == "bfloat16" or (training.precision == "auto" and at_hand.on_gpu),
        )
    except TrainingError:
        return None
    return found.memory


def _advice(task: StudyTask, scale: Scale, parts: int, together: int, at_hand: Room) -> str:
    """What makes a run fit: the batch in more parts, or else more memory."""
    rows = float(scale.batch) / task.file.run.ranks
    while parts < rows:
        parts *= 2
        needed = _memory(task, scale, parts, at_hand)
        if needed is not None and needed.total * together <= at_hand.usable:
            return f"set training.accumulate = {parts}"
    if at_hand.on_gpu:
        return 'set run.parallel = "fsdp2" with more run.ranks, or use GPUs with more memory'
    return "use a machine with more memory"
