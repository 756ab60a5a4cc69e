"""Trials as Ray tasks: each asks for its CPUs and GPUs, and runs wherever the cluster has them free.

Ray itself finds the cluster: the one of RAY_ADDRESS, one that was started on this machine, or else a new one
here. Every node must reach the package, the data and the study's storage; also `run.checkpoints`, if a trial
is to go on where another node left it. A task runs one trial, so that a cluster that is shared or grows
hands out its resources trial by trial. When a node is lost its trial is requeued at once, to go on elsewhere.

A trial with more ranks than any node has GPUs (or CPUs) for gets a placement group: an equal share of the
ranks on each of several nodes, which meet as in `runners.torchrun`.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transfer_bo.errors import WorkerError
from transfer_bo.runners import worker

if TYPE_CHECKING:
    from transfer_bo.runners.worker_spec import WorkerSpec

__all__ = ["RayWorker", "connect", "nodes_of_trial"]


def _ray() -> Any:
    """Ray, which is installed with the extra "ray" only.

    Raises:
        WorkerError: If it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise WorkerError(
            'run.runner = "ray": Ray is not installed; pip install "transfer-bo[ray]", or set it to "local".'
        ) from None


def connect() -> None:
    """Connect this process to the cluster, once.

    Raises:
        WorkerError: If Ray is not installed, or the cluster does not answer.
    """
    ray = _ray()
    if ray.is_initialized():
        return

    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkerError(f'run.runner = "ray": no cluster can be reached ({reason}).') from error

    # Ray has replaced our handler, unless this is a thread, in which handlers can't be set.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, handler)


def nodes_of_trial(ranks: int, per_rank: float, of_nodes: Sequence[float]) -> int:
    """How many nodes a trial needs: the fewest that have room for equal shares of its ranks.

    Args:
        ranks: Processes of the trial.
        per_rank: What each of them needs, GPUs or CPUs.
        of_nodes: How many of these each node has.

    Returns:
        1 also if the nodes that are there now are too few or too small: others may join.
    """
    for n in range(1, ranks + 1):
        room = sum(has >= ranks // n * per_rank for has in of_nodes)
        if ranks % n == 0 and room >= n:
            return n
    return 1


def _run_on_nodes(spec_json: str, group: Any, needs: Mapping[str, float]) -> tuple[int, str]:
    """Run one trial on all nodes of a placement group, beginning with this one; see `worker.run_task`."""
    from transfer_bo.runners.worker_spec import WorkerSpec

    ray = _ray()
    with socket.socket() as free:
        free.bind(("", 0))
        endpoint = f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
    spec = WorkerSpec.from_json(spec_json)
    run = spec.study_file.run.model_copy(update={"nodes": len(group.bundle_specs), "rdzv_endpoint": endpoint})
    spec = replace(spec, study_file=spec.study_file.model_copy(update={"run": run}))

    others = [
        ray.remote(_serve).options(**_place(group, i), **needs).remote(spec.to_json())
        for i in range(1, run.nodes)
    ]
    try:
        return worker.run_task(spec.to_json())
    finally:
        for other in others:
            ray.cancel(other, force=True)


def _serve(spec_json: str) -> None:
    """Lend this node to a trial."""
    from transfer_bo.runners.torchrun import serve_node
    from transfer_bo.runners.worker_spec import WorkerSpec

    serve_node(WorkerSpec.from_json(spec_json).study_file, lambda line: None)


def _place(group: Any, bundle: int) -> dict[str, Any]:
    """Options of a task that runs on one node of a placement group, and is not repeated."""
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    place = strategies.PlacementGroupSchedulingStrategy(
        placement_group=group, placement_group_bundle_index=bundle
    )
    return {"scheduling_strategy": place, "max_retries": 0}


class RayWorker:
    """A worker that runs one trial as a Ray task, with the interface of a process.

    Args:
        spec: What it is to do.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._ray = _ray()
        run = spec.study_file.run
        has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        kind, per_rank = ("GPU", 1) if has_gpus else ("CPU", run.threads)
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        nodes = nodes_of_trial(run.ranks, per_rank, [has.get(kind, 0.0) for has in alive])
        here = run.ranks // nodes
        needs = {"num_cpus": run.threads * (1 if has_gpus else here), "num_gpus": here if has_gpus else 0}
        name = f"{spec.study_file.name}-{spec.owner}"

        self._group: Any = None
        if nodes == 1:
            # A trial is run again under its own number, not as a task.
            remote = self._ray.remote(worker.run_task).options(**needs, max_retries=0, name=name)
            self._result = remote.remote(spec.to_json())
        else:
            bundle = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
            self._group = self._ray.util.placement_group(
                [{key: value for key, value in bundle.items() if value}] * nodes, strategy="STRICT_SPREAD"
            )
            remote = self._ray.remote(_run_on_nodes).options(**needs, **_place(self._group, 0), name=name)
            self._result = remote.remote(spec.to_json(), self._group, needs)
        self._code: int | None = None
        self._message = ""

    @property
    def exitcode(self) -> int | None:
        """As of a process: None while it runs, or waits for resources."""
        if self._code is None and self._ray.wait([self._result], timeout=0)[0]:
            try:
                self._code, self._message = self._ray.get(self._result)
            except self._ray.exceptions.TaskCancelledError:
                self._code = worker.STOPPED
            except self._ray.exceptions.RayError as error:  # its process or node is gone
                self._code, self._message = worker.CRASHED, str(error)
            if self._group is not None:  # gives its resources back, and ends what still runs there
                self._ray.util.remove_placement_group(self._group)
        return self._code

    def message(self) -> str:
        """The sentence that it has for the user, "" if none; to be called after its end."""
        return self._message

    def terminate(self) -> None:
        """Ask it to write a checkpoint, put its trial back into the queue, and end."""
        self._ray.cancel(self._result, force=False)

    def kill(self) -> None:
        """End it at once."""
        self._ray.cancel(self._result, force=True)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds."""
        self._ray.wait([self._result], timeout=timeout)
