"""What a search begins with: the documented defaults, once, however many processes open the study."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from postgres import cluster, why_not

from transfer_bo import Outcome
from transfer_bo.records import read_runs
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.store.backends import open_storage
from transfer_bo.store.heartbeat import requeue
from transfer_bo.store.open_study import create_study
from transfer_bo.store.owner import Owner
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
CONTEXT = multiprocessing.get_context("forkserver")
FIRST = {"lr": 0.25}
SECONDS = 120


@contextlib.contextmanager
def storage(kind: str, folder: Path) -> Iterator[str]:
    """An empty storage of a kind."""
    if kind != "postgresql":
        yield f"{kind}:///{folder / 'study.db'}"
        return
    with cluster() as server:
        yield server.url


def train(trial: optuna.Trial) -> float:
    """Asks for its HP and is done."""
    return trial.suggest_float("lr", 0.0, 1.0)


def join(path: Path, url: str, names: list[str], barrier: Any) -> None:
    """In a process of its own: open studies that are not there yet and run their trials."""
    for name in names:
        study_file = load_study_file(path).model_copy(update={"name": name}).stored_in(url)
        owner = Owner.here()
        barrier.wait(SECONDS)
        study = create_study(study_file, study_file.definition(), owner=owner)
        options = WorkerOptions(owner=owner, beat=0.1)
        work(study, train, is_over=lambda trials: len(trials) > 3, first_params=FIRST, options=options)


@pytest.mark.usefixtures("no_open_connections")
@pytest.mark.parametrize(
    "kind",
    [
        "sqlite",
        "journal",
        pytest.param("postgresql", marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not()))),
    ],
)
def test_two_that_open_a_new_study_at_once_run_the_defaults_once(
    kind: str, write_study: WriteStudy, tmp_path: Path
) -> None:
    """Only the first trial has them; the storage gives its number to one process."""
    path, names = write_study(), ["one", "two", "three"]
    CONTEXT.set_forkserver_preload(["test_study_search", "alembic.command"])
    with storage(kind, tmp_path) as url:
        barrier = CONTEXT.Barrier(2)
        both = [CONTEXT.Process(target=join, args=(path, url, names, barrier), daemon=True) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(SECONDS)
        opened = open_storage(url, create=False)
        studies = {name: read_runs(optuna.load_study(study_name=name, storage=opened)) for name in names}

    assert [0, 0] == [process.exitcode for process in both]
    for runs in studies.values():
        assert [0] == [run.number for run in runs if run.params == FIRST]
        assert {Outcome.FINISHED} == {run.outcome for run in runs}
        assert len(runs) >= 4


def test_the_first_trial_keeps_its_hps_when_its_owner_dies_at_once() -> None:
    """Between its birth and its HPs being written: whoever takes it next writes them."""
    study = optuna.create_study()
    study._storage.create_new_trial(study._study_id)
    requeue(study, study.get_trials()[0], owner_died=True)

    options = WorkerOptions(beat=0.1)
    work(study, train, is_over=lambda trials: len(trials) > 1, first_params=FIRST, options=options)

    assert [0] == [trial.number for trial in study.trials if trial.params == FIRST]
    assert 2 == len(study.trials)
