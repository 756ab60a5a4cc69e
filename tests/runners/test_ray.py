"""Trials as Ray tasks on a real local cluster: a lost node's trial goes on elsewhere, nothing is lost."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from transfer_bo import Outcome, TransferError
from transfer_bo.history import read_runs
from transfer_bo.runners import local
from transfer_bo.runners.liveness import DEATHS_ATTR
from transfer_bo.runners.storage import open_study
from transfer_bo.runners.trial import Attempt, make_task
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
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
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
            with contextlib.suppress(TransferError):  # nothing yet
                trials = open_study(study_file).get_trials(states=(TrialState.RUNNING,))
                running = [trial.number for trial in trials if trial.intermediate_values]
        ray_cluster.remove_node(nodes[0], allow_graceful=False)
        removed.append(running)

    remover = threading.Thread(target=remove)
    remover.start()
    shown = io.StringIO()
    local.run_search(study_file, Console(file=shown, width=160))
    remover.join()

    trials = open_study(study_file).get_trials()
    died = [trial.number for trial in trials if trial.user_attrs.get(DEATHS_ATTR)]
    assert "its trial is given back and a new worker starts" in shown.getvalue()
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


def test_without_ray_the_sentence_says_what_to_install(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any trial is started."""
    monkeypatch.setitem(sys.modules, "ray", None)
    study_file = load_study_file(write_study(("trials = 4", f"trials = 4\n{ON_RAY}")))

    with pytest.raises(TransferError, match=r'pip install "transfer-bo\[ray\]"'):
        local.run_search(study_file, Console(file=io.StringIO()))
