"""Worker processes: a study runs to its end, survives a killed worker and Ctrl-C, and repeats nothing."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from commands import commands
from rich.console import Console

from transfer_bo import Outcome
from transfer_bo.attributes import OWNER_LOSSES_ATTR, WORKER_ATTR
from transfer_bo.errors import StudyError, StudyFileError, WorkerError
from transfer_bo.records import Run, read_runs
from transfer_bo.runners import study_lock, study_runner, worker, worker_pool
from transfer_bo.store.open_study import open_study
from transfer_bo.store.owner import is_alive
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
Start = Callable[[Path], "subprocess.Popen[str]"]
SECONDS = 200
LONG = (  # a trial takes seconds, enough to be caught in the middle
    ("tokens = 512", "tokens = 30_000"),
    ("tokens = 512", "tokens = 30_000"),
    ("tokens = 1024", "tokens = 300_000"),
)
DEFAULTS = {"lr": 0.01, "lr.embedding": 1.0}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `transfer-bo run FILE` as a process; what is left of it is ended after the test."""
    with commands(tmp_path) as run:
        yield lambda path: run("run", str(path))


def search(path: Path) -> str:
    """Search in this process (the workers are their own); what is shown."""
    shown = io.StringIO()
    study_runner.run_search(load_study_file(path), Console(file=shown, width=160))
    return shown.getvalue()


def read(path: Path) -> list[Run]:
    """All runs of a study file's study."""
    return read_runs(open_study(load_study_file(path)))


def running_trial(path: Path, seconds: float = SECONDS) -> tuple[int, int]:
    """Wait until a trial is being trained: its number and the process id of its worker."""
    deadline = time.monotonic() + seconds
    study = None
    while time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(StudyError):  # nothing yet
            study = study or open_study(load_study_file(path))
        for trial in study.get_trials(deepcopy=False) if study is not None else []:
            if trial.state == optuna.trial.TrialState.RUNNING and trial.intermediate_values:
                return trial.number, trial.user_attrs[WORKER_ATTR]["pid"]
    raise AssertionError("no trial started")


def test_a_study_runs_verifies_and_is_not_repeated(write_study: WriteStudy) -> None:
    """Two workers make the asked number of trials; a second run and a second verification add none."""
    said = search(write_study(("trials = 4", "trials = 4\n[run]\nworkers = 2")))
    path, shown = write_study(), Console(file=io.StringIO())
    study_file = load_study_file(path)
    searched = read(path)
    assert not study_runner.run_search(study_file, shown)
    assert searched == read(path)
    first = study_runner.run_verification(study_file, shown)
    verified = read(path)
    second = study_runner.run_verification(study_file, shown)

    assert len(searched) in (4, 5)  # both workers may start a last trial at the same moment
    assert DEFAULTS == searched[0].params
    assert study_file.proxies[0] == searched[0].scale
    assert "trial 0 at width 16" in said
    assert ["control", "verify"] == sorted(run.purpose for run in verified[len(searched) :])
    assert {Outcome.FINISHED} == {run.outcome for run in verified}
    assert verified == read(path)
    assert first == second
    assert {"documented defaults"} == set(first.control)


def test_a_killed_worker_costs_one_trial_only(write_study: WriteStudy) -> None:
    """Its trial is requeued and runs again under its number, and a new worker makes the rest."""
    path = write_study(*LONG, ("trials = 4", "trials = 2"))
    killed: list[int] = []

    def kill() -> None:
        number, pid = running_trial(path)
        os.kill(pid, signal.SIGKILL)
        killed.append(number)

    killer = threading.Thread(target=kill)
    killer.start()
    said = search(path)
    killer.join()

    runs = read(path)
    assert [0] == killed
    assert "A worker died (exit code -9)" in said
    assert [Outcome.FINISHED, Outcome.FINISHED] == [run.outcome for run in runs]
    assert DEFAULTS == runs[0].params
    assert 1 == open_study(load_study_file(path)).trials[0].user_attrs[OWNER_LOSSES_ATTR]


def test_an_interrupted_run_ends_in_order(write_study: WriteStudy, start: Start) -> None:
    """Ctrl-C: the exit code says so, the message says how to go on, and no worker is left."""
    path = write_study(*LONG)
    process = start(path)

    _, pid = running_trial(path)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SECONDS)

    assert 130 == process.returncode
    assert f"Stopped. Finished trials are kept; go on with: transfer-bo run {path}\n" == said
    assert not is_alive(pid)
    assert [Outcome.WAITING] == [run.outcome for run in read(path)]
    assert OWNER_LOSSES_ATTR not in open_study(load_study_file(path)).trials[0].user_attrs


def test_a_run_whose_only_worker_was_asked_to_stop_is_not_done(write_study: WriteStudy, start: Start) -> None:
    """SIGTERM to the worker alone: its trial waits, so the run says how to go on, not what comes next."""
    path = write_study(*LONG)
    process = start(path)

    _, pid = running_trial(path)
    os.kill(pid, signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)

    assert 130 == process.returncode
    assert f"Stopped. Finished trials are kept; go on with: transfer-bo run {path}\n" == said
    assert [Outcome.WAITING] == [run.outcome for run in read(path)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_leaves_no_worker_and_goes_on(write_study: WriteStudy, start: Start) -> None:
    """When the parent is gone the worker stops; the next run finds the machine and the plan as they were."""
    path = write_study(*LONG, ("trials = 4", "trials = 1"))
    process = start(path)

    _, pid = running_trial(path, 3 * SECONDS)
    process.kill()
    process.communicate()
    search(path)

    assert not is_alive(pid)
    assert [Outcome.FINISHED] == [run.outcome for run in read(path)]
    assert DEFAULTS == read(path)[0].params


def test_a_study_runs_once_at_a_time(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run of the same study says so instead of taking the cores from the first."""
    study_file = load_study_file(write_study())
    monkeypatch.setattr(study_lock, "WAIT_SECONDS", 0.0)

    with study_lock.study_lock(study_file), pytest.raises(StudyFileError, match="'tiny'"):
        study_runner.run_search(study_file, Console(file=io.StringIO()))


def test_workers_that_keep_dying_end_the_run(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded number of new workers the log is named instead."""
    study_file = load_study_file(write_study())
    monkeypatch.setattr(worker, "main", os.abort)  # fails for it is given arguments

    with pytest.raises(WorkerError, match=r"4 times.* code 1.*workers\.log"):
        study_runner.run_search(study_file, Console(file=io.StringIO()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_to_end_that_got_lost_is_remembered() -> None:
    """An exception raised in a destructor goes nowhere; the loop still learns that it was asked to end."""

    class Deaf:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with worker_pool.remembered_interrupts() as was_asked:
        before = was_asked()
        Deaf()

    assert not before
    assert was_asked()
