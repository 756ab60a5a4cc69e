"""Owners of trials: no false deaths, no trial of a dead owner forgotten, nothing counted twice."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from transfer_bo import Outcome
from transfer_bo.attributes import BEAT_ATTR, OUTCOME_ATTR, OWNER_LOSSES_ATTR, WORKER_ATTR
from transfer_bo.errors import Preempted
from transfer_bo.records import read_runs
from transfer_bo.runners.objective import objective
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.store.heartbeat import MAX_OWNER_LOSSES, Heartbeat, requeue, requeue_dead
from transfer_bo.store.owned_trial import OwnedTrial, run_trial
from transfer_bo.store.owner import Owner
from transfer_bo.store.retrying_storage import RetryingStorage

HERE, THERE = Owner.here(), Owner("elsewhere", 1, "far away")


def study_of(owner: Owner = HERE, backend: optuna.storages.BaseStorage | None = None) -> optuna.Study:
    """The study in memory, or on a backend; new trials get the owner's name."""
    storage = RetryingStorage(backend or optuna.storages.InMemoryStorage(), owner.attributes)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(study_name="s", storage=storage, sampler=sampler, load_if_exists=True)


def asked(study: optuna.Study) -> FrozenTrial:
    """A new running trial with one HP and one report."""
    trial = study.ask()
    trial.suggest_float("lr", 0.0, 1.0)
    trial.report(3.0, step=100)
    return study.trials[trial.number]


def heartbeat(study: optuna.Study, *owners: Owner) -> Heartbeat:
    """Observes every 10 s, declares owners dead after 60 s of observation."""
    return Heartbeat(study, lambda: {owner.id for owner in owners}, beat=10.0, grace=60.0)


def test_a_silent_trial_is_requeued_after_the_grace_and_not_before() -> None:
    """Under its own number, with its HPs and its curve, as one death."""
    study = study_of(THERE)
    before = asked(study)
    watcher = heartbeat(study)
    for now in range(0, 60, 10):
        watcher.observe(now)
    assert TrialState.RUNNING == study.trials[0].state
    watcher.observe(60)

    after = study.trials[0]
    assert TrialState.WAITING == after.state
    assert (before.number, before.params, before.intermediate_values) == (
        after.number,
        after.params,
        after.intermediate_values,
    )
    assert 1 == after.user_attrs[OWNER_LOSSES_ATTR]


def test_a_beating_trial_is_never_requeued() -> None:
    """Its owner beats while it is busy with one long step."""
    study = study_of(THERE)
    asked(study)
    owner, watcher = heartbeat(study, THERE), heartbeat(study)
    for now in range(0, 600, 10):
        owner.observe(now)
        watcher.observe(now + 5)

    assert TrialState.RUNNING == study.trials[0].state


def test_time_without_a_look_does_not_count() -> None:
    """When the storage was away for an hour nobody is dead: nobody could beat."""
    study = study_of(THERE)
    asked(study)
    watcher = heartbeat(study)
    watcher.observe(0)
    watcher.observe(3600)
    watcher.observe(7200)

    assert TrialState.RUNNING == study.trials[0].state


def test_a_beat_needs_no_interpreter_lock_of_the_trial() -> None:
    """A step that holds the interpreter's lock for long stops a thread's heart, but not the parent's."""
    code = "import ctypes; ctypes.PyDLL(None).sleep(3)"
    study = study_of(THERE)
    asked(study)
    step = subprocess.Popen([sys.executable, "-c", code])
    parent = Heartbeat(study, lambda: {THERE.id}, beat=0.1, grace=0.5)
    watcher = Heartbeat(study, set, beat=0.1, grace=0.5)
    with parent.beating(), watcher.beating():
        step.wait()
    assert TrialState.RUNNING == study.trials[0].state

    own = Heartbeat(study, lambda: {THERE.id}, beat=0.1, grace=0.5)
    with own.beating():  # the same in one process: the count stands still
        time.sleep(0.3)
        count = study.trials[0].user_attrs[BEAT_ATTR]
        ctypes.PyDLL(None).sleep(1)

        assert study.trials[0].user_attrs[BEAT_ATTR] - count <= 2


def test_a_dead_process_of_this_machine_is_found_at_once() -> None:
    """Its id is gone; one that is a zombie counts as gone."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner(HERE.host, child.pid, "child")
    study = study_of(owner)
    asked(study)
    assert 0 == requeue_dead(study)
    child.kill()
    time.sleep(0.2)

    assert 1 == requeue_dead(study)  # not waited for yet: a zombie
    child.communicate()
    assert TrialState.WAITING == study.trials[0].state


def test_trials_of_other_machines_are_not_requeued_at_once() -> None:
    """The same process id elsewhere says nothing."""
    study = study_of(Owner("elsewhere", 999_999_999, "x"))
    asked(study)

    assert 0 == requeue_dead(study)
    assert 1 == requeue_dead(study, owner="x", owner_died=False)
    assert OWNER_LOSSES_ATTR not in study.trials[0].user_attrs


def test_a_trial_that_kills_its_workers_is_closed() -> None:
    """After a few deaths it is preempted for good, which is not informative."""
    study = study_of(THERE)
    asked(study)
    for _ in range(MAX_OWNER_LOSSES):
        assert requeue(study, study.trials[0], owner_died=True)
        study._storage.set_trial_state_values(0, TrialState.RUNNING)
    assert requeue(study, study.trials[0], owner_died=True)

    assert TrialState.FAIL == study.trials[0].state
    assert [Outcome.PREEMPTED] == [run.outcome for run in read_runs(study)]


def test_orderly_stops_do_not_count_against_a_trial() -> None:
    """A spot machine may take it away as often as it likes."""
    study = study_of(THERE)
    asked(study)
    for _ in range(10 * MAX_OWNER_LOSSES):
        requeue(study, study.trials[0], owner_died=False)
        study._storage.set_trial_state_values(0, TrialState.RUNNING)

    assert TrialState.RUNNING == study.trials[0].state


@pytest.mark.parametrize("change", ["beat", "owner", "ended"])
def test_a_trial_that_moved_on_is_not_requeued(change: str) -> None:
    """What was observed is compared with what is stored now."""
    study = study_of(THERE)
    observed = asked(study)
    if change == "beat":
        heartbeat(study, THERE).observe(0)
    elif change == "owner":
        study._storage.set_trial_user_attr(0, WORKER_ATTR, HERE.attributes()[WORKER_ATTR])
    else:
        study.tell(0, 1.0)

    assert not requeue(study, observed, owner_died=True)


def test_a_lost_trial_is_left_to_its_new_owner() -> None:
    """A frozen machine that wakes up finds its trial in other hands and writes nothing to it."""
    study = study_of(HERE)
    frozen = OwnedTrial(study, asked(study)._trial_id, HERE)
    requeue(study, study.trials[0], owner_died=True)
    new = study.ask()
    study._storage.set_trial_user_attr(new._trial_id, WORKER_ATTR, THERE.attributes()[WORKER_ATTR])

    def train(trial: optuna.Trial) -> float:
        trial.suggest_float("lr", 0.0, 1.0)
        return 2.0

    assert run_trial(study, frozen, objective(train)) is None
    with pytest.raises(Preempted):
        frozen.report(1.0, step=200)
    assert TrialState.RUNNING == study.trials[0].state
    assert 200 not in study.trials[0].intermediate_values


def test_a_trial_runs_again_with_the_same_values() -> None:
    """Suggested HPs come back, and reports of before may be repeated without a word."""
    study = study_of(HERE)
    observed = asked(study)
    requeue(study, observed, owner_died=False)

    def train(trial: optuna.Trial) -> float:
        trial.report(3.0, step=100)
        return trial.suggest_float("lr", 0.0, 1.0)

    work(study, objective(train), is_over=lambda trials: True, options=WorkerOptions(owner=HERE, beat=0.1))

    assert [observed.params["lr"]] == [trial.value for trial in study.trials]
    assert "finished" == study.trials[0].user_attrs[OUTCOME_ATTR]


def test_the_last_worker_runs_what_another_left() -> None:
    """A worker with nothing to do waits, and takes over when the other one falls silent."""
    backend = optuna.storages.InMemoryStorage()
    asked(study_of(THERE, backend))
    owner = Owner.here()
    study = study_of(owner, backend)

    work(
        study,
        objective(lambda trial: trial.suggest_float("lr", 0.0, 1.0)),
        is_over=lambda trials: True,
        options=WorkerOptions(owner=owner, beat=0.05, grace=0.3),
    )

    assert [Outcome.FINISHED] == [run.outcome for run in read_runs(study)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), Preempted()])
def test_an_interrupted_trial_goes_back(error: BaseException) -> None:
    """Ctrl-C ends the loop; the trial waits for the next one."""
    study = study_of(HERE)
    stop = threading.Event()

    def train(trial: optuna.Trial) -> float:
        stop.set()
        raise error

    caught: list[BaseException] = []
    try:
        options = WorkerOptions(owner=HERE, should_stop=stop.is_set)
        work(study, objective(train), is_over=lambda trials: False, options=options)
    except BaseException as raised:
        caught.append(raised)

    assert [] == caught if isinstance(error, Preempted) else [error] == caught
    assert [Outcome.WAITING] == [run.outcome for run in read_runs(study)]
