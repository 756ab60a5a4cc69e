"""Trials as Ray tasks on a real local cluster: a lost node's trial goes on elsewhere, nothing is lost."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from transfer_bo import Outcome
from transfer_bo.attributes import OWNER_LOSSES_ATTR
from transfer_bo.errors import StudyError, WorkerError
from transfer_bo.records import read_runs
from transfer_bo.runners import study_runner
from transfer_bo.runners.ray_tasks import nodes_of_trial
from transfer_bo.runners.study_search import make_sampler
from transfer_bo.runners.task import Attempt, StudyTask, make_task
from transfer_bo.runners.worker_spec import WorkerSpec
from transfer_bo.store.open_study import open_study
from transfer_bo.store.owner import Owner
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
SECONDS = 600
ON_RAY = '[run]\nrunner = "ray"\nworkers = 2\ncheckpoint_seconds = 0.1'

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed (pip install "transfer-bo[ray]")'
)


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of this machine whose head runs no trials; nodes are added and removed by the test."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's patience with processes that start, which on a busy machine take long.
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", str(SECONDS))
    monkeypatch.setenv("RAY_agent_register_timeout_ms", str(1000 * SECONDS))
    from ray._private import services
    from ray.cluster_utils import Cluster

    get_node = services.get_node

    def patient(*arguments: Any) -> Any:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    monkeypatch.setattr(services, "get_node", patient)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
# Ray's own: files and sockets that it leaves to the garbage collector, and words about its future.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_node_costs_nothing(write_study: WriteStudy, ray_cluster: Any) -> None:
    """Two nodes, one removed in the middle of its trial: all trials end, each once, with the right result."""
    path = write_study(
        ("tokens = 512", "tokens = 20_000"),
        ("tokens = 512", "tokens = 20_000"),
        ("tokens = 1024", "tokens = 200_000"),
        ("trials = 4", f"trials = 4\n{ON_RAY}"),
    )
    study_file = load_study_file(path)
    nodes = [ray_cluster.add_node(num_cpus=1) for _ in range(2)]
    removed: list[list[int]] = []

    def remove() -> None:
        running: list[int] = []
        while len(running) < 2:
            time.sleep(0.05)
            with contextlib.suppress(StudyError):  # nothing yet
                trials = open_study(study_file).get_trials(states=(TrialState.RUNNING,))
                running = [trial.number for trial in trials if trial.intermediate_values]
        ray_cluster.remove_node(nodes[0], allow_graceful=False)
        removed.append(running)

    remover = threading.Thread(target=remove)
    remover.start()
    shown = io.StringIO()
    study_runner.run_search(study_file, Console(file=shown, width=160))
    remover.join()

    trials = open_study(study_file).get_trials()
    died = [trial.number for trial in trials if trial.user_attrs.get(OWNER_LOSSES_ATTR)]
    assert "its trial returns to the queue and a new worker starts" in shown.getvalue()
    assert len(trials) in (4, 5)
    assert {Outcome.FINISHED} == {run.outcome for run in read_runs(open_study(study_file))}
    assert 1 == len(died)
    assert died[0] in removed[0]
    task = make_task(study_file)
    for trial in trials:
        attempt = Attempt(
            trial.number,
            study_file.proxies[trial.params["rung"]],
            {name: value for name, value in trial.params.items() if name != "rung"},
            trial.number + 1,
            1,
            0,
            lambda *_: None,
        )
        assert task.run(attempt) == trial.value


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_trial_larger_than_a_node_runs_on_two(write_study: WriteStudy, ray_cluster: Any) -> None:
    """Two ranks where each node has one GPU: a placement group, and the loss of one process."""
    path = write_study(("trials = 4", f"trials = 2\n{ON_RAY.replace('workers = 2', 'ranks = 2')}"))
    study_file = load_study_file(path)
    for _ in range(2):
        ray_cluster.add_node(num_cpus=1, num_gpus=1)

    study_runner.run_search(study_file, Console(file=io.StringIO(), width=160))

    trials = open_study(study_file).get_trials()
    run = study_file.run.model_copy(update={"ranks": 1, "runner": "local"})
    task = make_task(study_file.model_copy(update={"run": run}))
    assert [Outcome.FINISHED] * 2 == [run.outcome for run in read_runs(open_study(study_file))]
    for trial in trials:
        hps = {name: value for name, value in trial.params.items() if name != "rung"}
        scale = study_file.proxies[trial.params["rung"]]
        again = task.run(Attempt(trial.number, scale, hps, trial.number + 1, 1, 0, lambda *_: None))
        assert again == pytest.approx(trial.value, rel=1e-4)  # float32


@pytest.mark.parametrize(
    ("ranks", "per_rank", "of_nodes", "nodes"),
    [
        (8, 1, [8, 8], 1),
        (16, 1, [8, 8], 2),
        (16, 1, [8, 4, 4, 4], 4),
        (6, 1, [4, 4], 2),
        (2, 3, [5, 5], 2),
        (4, 1, [0, 2], 1),  # it waits for others
        (4, 1, [], 1),
    ],
)
def test_ranks_are_shared_equally_by_few_nodes(
    ranks: int, per_rank: float, of_nodes: list[float], nodes: int
) -> None:
    """As many as have room for an equal share."""
    assert nodes == nodes_of_trial(ranks, per_rank, of_nodes)


def test_without_ray_the_sentence_says_what_to_install(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any trial is started."""
    monkeypatch.setitem(sys.modules, "ray", None)
    study_file = load_study_file(write_study(("trials = 4", f"trials = 4\n{ON_RAY}")))

    with pytest.raises(WorkerError, match=r'pip install "transfer-bo\[ray\]"'):
        study_runner.run_search(study_file, Console(file=io.StringIO()))


class FakeRay(types.ModuleType):
    """Runs a task when it is asked for its result; the first one is lost in the middle of its trial."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.asked: list[dict[str, Any]] = []
        self.exceptions = types.SimpleNamespace(RayError=ConnectionError, TaskCancelledError=TimeoutError)

    def is_initialized(self) -> bool:
        """A cluster is there."""
        return True

    def cluster_resources(self) -> dict[str, float]:
        """With GPUs."""
        return {"CPU": 8.0, "GPU": 4.0}

    def nodes(self) -> list[dict[str, Any]]:
        """One that has all of it, and one that is gone."""
        return [
            {"Alive": True, "Resources": self.cluster_resources()},
            {"Alive": False, "Resources": {"CPU": 9}},
        ]

    def remote(self, function: Callable[..., Any]) -> Any:
        """What a task is made of."""

        def options(**asked: Any) -> Any:
            self.asked.append(asked)
            return types.SimpleNamespace(remote=lambda spec: functools.partial(function, spec))

        return types.SimpleNamespace(options=options)

    def wait(self, results: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        """All are ready."""
        return results, []

    def get(self, result: Any) -> Any:
        """The result, or that a node is gone."""
        if len(self.asked) > 1:
            return result()
        spec = WorkerSpec.from_json(result.args[0])
        owner = Owner("elsewhere", 1, spec.owner)
        sampler = make_sampler(make_task(spec.study_file))
        open_study(spec.study_file, sampler=sampler, owner=owner).ask()
        raise ConnectionError("The node is gone.")


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    """In the place of Ray."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    before = signal.getsignal(signal.SIGINT)
    yield fake
    signal.signal(signal.SIGINT, before)  # a task takes it for itself


def test_a_task_runs_one_trial_on_gpus_of_its_own(
    write_study: WriteStudy, fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many tasks as trials, one for a lost one, and one that finds nothing left to do."""
    monkeypatch.setattr(StudyTask, "run", lambda task, attempt: 2.0)  # on two threads it would take long
    path = write_study(("trials = 4", 'trials = 2\n[run]\nrunner = "ray"\nthreads = 2'))
    shown = io.StringIO()
    study_runner.run_search(load_study_file(path), Console(file=shown, width=160))

    study = open_study(load_study_file(path))
    assert [Outcome.FINISHED, Outcome.FINISHED] == [run.outcome for run in read_runs(study)]
    assert [1, None] == [trial.user_attrs.get(OWNER_LOSSES_ATTR) for trial in study.trials]
    assert (
        "A worker died (exit code 1); its trial returns to the queue and a new worker starts."
        in shown.getvalue()
    )
    assert "The node is gone." in (load_study_file(path).out / "workers.log").read_text()
    assert [(1, 2, 0)] * 4 == [
        (asked["num_gpus"], asked["num_cpus"], asked["max_retries"]) for asked in fake_ray.asked
    ]


def test_trials_that_keep_failing_end_the_study(write_study: WriteStudy, fake_ray: FakeRay) -> None:
    """Though each task sees its own trial only."""
    command = f"[command]\nrun = {json.dumps([sys.executable, '-c', 'raise SystemExit(1)'])}\n"
    path = write_study(
        ("trials = 4", 'trials = 99\n[run]\nrunner = "ray"'), ("[budget]", f"{command}[budget]")
    )
    with pytest.raises(WorkerError, match=r"5 trials .* CommandError: "):
        study_runner.run_search(load_study_file(path), Console(file=io.StringIO()))
