"""Trials of a `study.optimize` that was killed: their budget is released, or it is said who holds it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import transfer_bo as tb
from transfer_bo.attributes import OPTIMIZER_ATTR
from transfer_bo.store.owner import machine_id

PROGRAM = """
import sys, time, optuna, transfer_bo as tb
optuna.logging.set_verbosity(optuna.logging.ERROR)
ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=128)])
sampler = tb.TransferSampler(
    ladder=ladder,
    target=tb.Scale(width=512),
    cost=lambda scale: 1.0 if scale.width < 500 else 9.0,
    budget=4.0,
    seed=0,
)
study = optuna.create_study(storage=sys.argv[1], study_name="a", load_if_exists=True, sampler=sampler)

def objective(trial):
    scale, lr = ladder.suggest(trial), trial.suggest_float("lr", 1e-4, 0.1, log=True)
    if trial.number == 1:
        print("running", flush=True)
        time.sleep(60)
    return lr + 8 / scale.width

study.optimize(objective)
"""


def make_study(storage: str | None = None, budget: float = 4.0) -> tuple[tb.Ladder, optuna.Study]:
    """A study whose every run costs 1."""
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=128)])
    sampler = tb.TransferSampler(
        ladder=ladder,
        target=tb.Scale(width=512),
        cost=lambda scale: 1.0 if scale.width < 500 else 9.0,
        budget=budget,
        seed=0,
    )
    study = optuna.create_study(storage=storage, study_name="a", load_if_exists=True, sampler=sampler)
    return ladder, study


def run(ladder: tb.Ladder, study: optuna.Study) -> int:
    """Spend the budget; how many runs finished."""
    study.optimize(
        lambda trial: 8 / ladder.suggest(trial).width + trial.suggest_float("lr", 1e-4, 0.1, log=True)
    )
    return sum(trial.state is TrialState.COMPLETE for trial in study.trials)


def test_the_budget_of_a_killed_process_is_released(tmp_path: Path) -> None:
    """After SIGKILL in the middle of a trial, the next process still makes every run that the budget buys."""
    storage = f"sqlite:///{tmp_path}/study.db"
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, storage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "running\n" == process.stdout.readline()
        process.send_signal(signal.SIGKILL)

    finished = run(*make_study(storage))

    assert 4 == finished
    _, study = make_study(storage)
    assert TrialState.FAIL is study.trials[1].state
    assert "preempted" == study.trials[1].user_attrs["transfer_bo:outcome"]


@pytest.mark.parametrize(
    "process",
    [None, {"host": "elsewhere/1/2", "pid": 1, "started": 1}],
    ids=["of an earlier release", "on another machine"],
)
def test_what_an_unknown_process_holds_is_reported(tmp_path: Path, process: dict[str, Any] | None) -> None:
    """Nobody can say whether it lives, so it keeps its share, and the warning names the trial."""
    ladder, study = make_study(f"sqlite:///{tmp_path}/study.db")
    attrs = {"transfer_bo:scale": {"width": 64}} | ({} if process is None else {OPTIMIZER_ATTR: process})
    run_of_somebody = optuna.create_trial(state=TrialState.RUNNING, user_attrs=attrs)
    study.add_trial(run_of_somebody)

    with pytest.warns(UserWarning, match="0 are RUNNING"):
        finished = run(ladder, study)

    assert 3 == finished
    assert TrialState.RUNNING is study.trials[0].state


@pytest.mark.parametrize(("pid", "expected"), [(2**22 + 1, TrialState.FAIL), (1, TrialState.RUNNING)])
def test_only_the_trials_of_processes_that_are_gone_are_closed(
    tmp_path: Path, pid: int, expected: TrialState
) -> None:
    """No process has a number above the limit of the kernel; process 1 lives as long as the machine."""
    ladder, study = make_study(f"sqlite:///{tmp_path}/study.db")
    attrs = {OPTIMIZER_ATTR: {"host": machine_id(), "pid": pid, "started": None}}
    study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attrs))

    run(ladder, study)

    assert expected is study.trials[0].state


def test_a_trial_that_was_asked_for_waits_for_whoever_tells_it(tmp_path: Path) -> None:
    """In ask/tell the process that asks may end before another one tells, so its trials are not closed."""
    storage = f"sqlite:///{tmp_path}/study.db"
    program = PROGRAM.replace("study.optimize(objective)", "ladder.suggest(study.ask())")
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, storage], check=True)
    ladder, study = make_study(storage)
    with pytest.warns(UserWarning, match="0 are RUNNING"):
        run(ladder, study)

    study.tell(0, 1.0)

    assert TrialState.COMPLETE is study.trials[0].state
