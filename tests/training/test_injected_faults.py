"""Failures at a chosen step: each has its effect, and the run goes on from its checkpoint, bit by bit."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path

import fault_job
import optuna
import pytest

from transfer_bo import Outcome
from transfer_bo.errors import TrainingError
from transfer_bo.records import read_runs
from transfer_bo.runners.objective import is_out_of_memory, objective
from transfer_bo.runners.study_search import first_params
from transfer_bo.runners.task import make_task
from transfer_bo.study_file import load_study_file
from transfer_bo.training import faults
from transfer_bo.training.faults import FAULT, Fault, FaultError, fault_from_environment

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fault_job"])
SECONDS = 120


@pytest.mark.parametrize(("kind", "code"), [("kill", -signal.SIGKILL), ("term", 1)])
def test_a_process_that_ends_early_goes_on_to_the_same_bits(kind: str, code: int, tmp_path: Path) -> None:
    """Killed, or asked to end: the curve is that of a run without a fault."""
    path = tmp_path / "trial.pt"
    process = CONTEXT.Process(target=fault_job.work, args=(Fault(kind, step=5), path))
    process.start()
    process.join(SECONDS)

    resumed: list[int] = []
    result = fault_job.run(
        None, checkpoint=path, report=lambda progress, loss: resumed.append(round(12 * progress))
    )
    whole = fault_job.run(None)

    assert code == process.exitcode
    assert resumed[0] in (5, 6)
    assert list(range(resumed[0], 13)) == resumed
    assert whole.curve == result.curve
    assert whole.loss == result.loss


def test_errors_are_raised_at_their_step() -> None:
    """One of ours, and the device's own when memory runs out."""
    for kind, expected in (("exception", FaultError), ("memory", RuntimeError)):
        seen: list[float] = []
        with pytest.raises(expected) as error:
            fault_job.run(Fault(kind, step=3), report=lambda progress, loss: seen.append(progress))  # noqa: B023

        assert 2 == len(seen)
        assert (kind == "memory") == is_out_of_memory(error.value)


def test_a_hang_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ever: the test ends it."""

    def end(seconds: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(faults.time, "sleep", end)
    with pytest.raises(TimeoutError):
        fault_job.run(Fault("hang", step=1))


@pytest.mark.parametrize(("once", "outcome"), [(True, Outcome.FINISHED), (False, Outcome.OUT_OF_MEMORY)])
def test_a_study_without_memory(
    once: bool,
    outcome: Outcome,
    write_study: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trial is run once more in parts; where that fails, too, the outcome is out_of_memory."""
    fault = {"kind": "memory", "step": 2} | ({"once": str(tmp_path / "fired")} if once else {})
    monkeypatch.setenv(FAULT, json.dumps(fault))
    task = make_task(load_study_file(write_study()))
    study = optuna.create_study()
    study.enqueue_trial(first_params(task))
    parts: list[int] = []
    run = task.run
    monkeypatch.setattr(task, "run", lambda attempt: (parts.append(attempt.accumulate), run(attempt))[1])

    study.optimize(objective(task), n_trials=1)

    assert [outcome] == [each.outcome for each in read_runs(study)]
    assert [1, 2] == parts


def test_the_variable_names_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks, and processes without it, have no fault."""
    monkeypatch.delenv(FAULT, raising=False)
    assert fault_from_environment(0) is None

    monkeypatch.setenv(FAULT, '{"kind": "kill", "rank": 1, "step": 5}')
    assert [None, Fault("kill", 5, 1)] == [fault_from_environment(rank) for rank in (0, 1)]


@pytest.mark.parametrize("text", ["kill", "[]", '{"kind": "kill"}', '{"kind": "melt", "step": 1}'])
def test_a_fault_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, that names the variable."""
    monkeypatch.setenv(FAULT, text)

    with pytest.raises(TrainingError, match=FAULT):
        fault_from_environment(0)
