"""A worker that dies at any moment: every call to the storage is tried, before and after it takes effect."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

import transfer_bo as tb
from transfer_bo.attributes import OWNER_LOSSES_ATTR, TOKEN_ATTR, WORKER_ATTR
from transfer_bo.records import Outcome, read_run, read_runs
from transfer_bo.runners import study_runner
from transfer_bo.runners.study_search import make_sampler
from transfer_bo.runners.task import make_task
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.store.heartbeat import Heartbeat, dead_trials, requeue_dead
from transfer_bo.store.open_study import create_study, open_study
from transfer_bo.store.owner import Owner, machine_id
from transfer_bo.store.retrying_storage import RetryingStorage
from transfer_bo.study_file import load_study_file
from transfer_bo.verification import plan, run_job

WriteStudy = Callable[..., Path]
LADDER = [tb.Scale(width=16), tb.Scale(width=32)]
TARGET = tb.Scale(width=64)
FIRST = {"rung": 0, "lr": 0.25}
TRIALS = 3
STEPS = (250, 500, 1000)


class KilledError(BaseException):
    """Stands for signal 9: nothing catches it, and no call gets through afterwards."""


class Mortal(InMemoryStorage):
    """A storage that its caller reaches a number of times before it is killed."""

    calls = 0
    last: int | None = None
    """Number of the call at which the caller dies; None to live."""
    takes_effect = False
    """Whether that call is carried out."""

    def __getattribute__(self, name: str) -> Any:
        """Every method that reads or writes counts."""
        found = super().__getattribute__(name)
        if not name.startswith(("get_", "set_", "create_")) or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.last is None or self.calls < self.last:
                return self.living(found, *args, **kwargs)
            if self.calls == self.last and self.takes_effect:
                self.living(found, *args, **kwargs)
            raise KilledError

        return call

    def living(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call with what it calls itself, which is one call of the worker's."""
        calls, last, self.last = self.calls, self.last, None
        try:
            return method(*args, **kwargs)
        finally:
            self.calls, self.last = calls, last


class World:
    """A study in memory, its workers one after the other, and the checkpoints that outlive them."""

    def __init__(self) -> None:
        self.storage = Mortal()
        self.results: list[tuple[int, float]] = []
        self.steps: list[tuple[int, int]] = []
        self.checkpoints: dict[int, int] = {}
        optuna.create_study(study_name="s", storage=self.storage)

    def study(self, owner: Owner) -> tuple[optuna.Study, tb.Ladder]:
        """The study as a worker opens it."""
        ladder = tb.Ladder(LADDER)
        sampler = tb.TransferSampler(ladder=ladder, target=TARGET, seed=0, n_startup_trials=100)
        storage = RetryingStorage(self.storage, owner.attributes)
        pruner = tb.RungPruner()
        return optuna.load_study(study_name="s", storage=storage, sampler=sampler, pruner=pruner), ladder

    def work(self, owner: Owner) -> None:
        """Run the study to its end as one worker, unless it is killed."""
        study, ladder = self.study(owner)

        def train(trial: optuna.Trial) -> float:
            ladder.suggest(trial)
            lr = trial.suggest_float("lr", 0.001, 1.0, log=True)
            for step in STEPS:
                if step > self.checkpoints.get(trial.number, 0):
                    self.steps.append((trial.number, step))
                    self.checkpoints[trial.number] = step
                trial.report(lr + 1.0, step)
            return lr

        def is_over(trials: list[FrozenTrial]) -> bool:
            return sum(read_run(trial).outcome is not Outcome.PREEMPTED for trial in trials) >= TRIALS

        work(
            study,
            tb.objective(train),
            is_over=is_over,
            first_params=FIRST,
            options=WorkerOptions(
                owner=owner, on_end=lambda t: self.results.append((t.number, t.value)), has_heartbeat=False
            ),
        )

    def die_at(self, call: int, takes_effect: bool) -> bool:
        """Let a worker die at a call; whether it came to that."""
        self.storage.calls, self.storage.last, self.storage.takes_effect = 0, call, takes_effect
        owner = Owner("elsewhere", 1, f"dead-{call}")
        try:
            self.work(owner)
        except KilledError:
            return True
        finally:
            self.storage.last = None
        return False


@functools.cache
def calls_of_a_search() -> int:
    """How many calls a worker makes that nothing happens to."""
    world = World()
    world.storage.calls = 0
    world.work(Owner.here())
    return world.storage.calls


def recover(world: World, *owners: str) -> None:
    """What a live worker does about dead ones whose silence has lasted long enough."""
    study, _ = world.study(Owner.here())
    for owner in owners:
        requeue_dead(study, owner=owner)
    nameless = [trial for trial in study.trials if trial.state is TrialState.RUNNING]
    assert [] == [trial for trial in nameless if not trial.user_attrs.get(WORKER_ATTR)]
    world.work(Owner.here())


def check(world: World) -> None:
    """Every trial ended once, the first with the defaults, and no reported result has changed since."""
    trials = optuna.load_study(study_name="s", storage=world.storage).trials
    runs = [read_run(trial) for trial in trials]

    assert {Outcome.FINISHED} == {run.outcome for run in runs}
    assert TRIALS == len(runs)
    assert len(runs) == len({trial.user_attrs[TOKEN_ATTR] for trial in trials})
    assert FIRST["lr"] == runs[0].params["lr"]
    assert [0] == [run.number for run in runs if run.params["lr"] == FIRST["lr"]]
    assert len(world.steps) == len(set(world.steps))
    assert set(world.results) <= {(run.number, run.loss) for run in runs}
    for run in runs:
        assert run.loss == run.params["lr"]
        assert [0.25, 0.5, 1.0] == list(run.curve)


@pytest.mark.parametrize("takes_effect", [False, True])
def test_a_worker_may_die_at_any_call(takes_effect: bool) -> None:
    """Another one finishes what it began; no trial is lost, left running, or run twice to its end."""
    for call in range(1, calls_of_a_search() + 1):
        world = World()

        assert world.die_at(call, takes_effect)
        recover(world, f"dead-{call}")
        check(world)


@pytest.mark.parametrize("second", [3, 11, 29])
def test_two_workers_may_die_one_after_the_other(second: int) -> None:
    """The second while it repeats what the first had begun."""
    for first in range(1, calls_of_a_search(), 5):
        world = World()
        world.die_at(first, takes_effect=True)
        study, _ = world.study(Owner.here())
        requeue_dead(study, owner=f"dead-{first}")
        has_died = world.die_at(second, takes_effect=True)

        recover(world, *([f"dead-{second}"] if has_died else []))
        check(world)


def test_a_requeue_may_be_cut_off() -> None:
    """A process may die while it requeues a trial of the dead; the next observer brings that to its end."""
    for call in range(1, 12):
        world = World()
        world.die_at(calls_of_a_search() // 2, takes_effect=True)
        study, _ = world.study(Owner.here())
        world.storage.calls, world.storage.last = 0, call
        try:
            requeue_dead(study, owner=f"dead-{calls_of_a_search() // 2}")
        except KilledError:
            pass
        finally:
            world.storage.last = None

        study, _ = world.study(Owner.here())
        watcher = Heartbeat(study, set, beat=10.0, grace=60.0)
        for now in range(0, 100, 10):
            watcher.observe(now)
        world.work(Owner.here())
        check(world)


def test_a_verification_may_be_cut_off_at_any_call() -> None:
    """The same job is taken up again under its number; there is one run, at the target."""

    class Loss:
        mean = 1.0

        def interval(self, level: float) -> tuple[float, float]:
            return 0.5, 1.5

    class Suggested:
        target, params, predicted_loss = TARGET, {"lr": 0.02}, Loss()

    def prepared() -> World:
        world = World()
        world.work(Owner.here())
        return world

    def run(world: World, owner: Owner) -> None:
        study, ladder = world.study(owner)

        @tb.objective
        def train(trial: optuna.Trial) -> float:
            return ladder.suggest(trial).width * trial.suggest_float("lr", 0.001, 1.0, log=True)

        (job,) = plan(Suggested())
        if job.find(study) is None:
            run_job(study, train, job, owner=owner)

    world = prepared()
    world.storage.calls = 0
    run(world, Owner.here())
    for call in range(1, world.storage.calls + 1):
        for takes_effect in (False, True):
            world = prepared()
            world.storage.calls, world.storage.last = 0, call
            world.storage.takes_effect = takes_effect
            with pytest.raises(KilledError):
                run(world, Owner("elsewhere", 1, "dead"))
            world.storage.last = None
            study, _ = world.study(Owner.here())
            requeue_dead(study, owner="dead")
            run(world, Owner.here())

            (verified,) = [read for read in read_runs(study) if read.purpose == "verify"]
            assert (TARGET, 64 * 0.02, Outcome.FINISHED) == (verified.scale, verified.loss, verified.outcome)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead owners are found within seconds."""
    quick = functools.partial(Heartbeat, beat=0.1, grace=0.5)
    monkeypatch.setattr(study_runner, "Heartbeat", quick)


@pytest.mark.usefixtures("impatient")
@pytest.mark.timeout(300)
def test_a_budget_held_by_the_dead_is_spent_on_their_trials(write_study: WriteStudy) -> None:
    """All that remains is reserved by trials of another machine that is gone: a run waits, and runs them."""
    path = write_study(("trials = 4", "trials = 2"))
    study_file = load_study_file(path)
    task = make_task(study_file)
    create_study(study_file, task.definition())
    gone = Owner("another machine", 1, "gone")
    dead = open_study(study_file, sampler=make_sampler(task), owner=gone)
    for _ in range(2):
        task.space.suggest(dead.ask())

    assert study_runner.run_search(study_file, Console(file=io.StringIO()))

    trials = open_study(study_file).trials
    assert [Outcome.FINISHED, Outcome.FINISHED] == [run.outcome for run in read_runs(open_study(study_file))]
    assert [1, 1] == [trial.user_attrs[OWNER_LOSSES_ATTR] for trial in trials]


def test_trials_of_the_dead_are_counted_by_status(write_study: WriteStudy) -> None:
    """Those of this machine at once, by their process ids."""
    study_file = load_study_file(write_study())
    create_study(study_file, study_file.definition())
    nobody = Owner(machine_id(), 2**22 - 1, "dead")
    open_study(study_file, owner=nobody).ask()
    open_study(study_file, owner=Owner.here()).ask()

    assert [0] == [trial.number for trial in dead_trials(open_study(study_file))]


KILLED_TRAINING = """
import os, signal, sys
from types import SimpleNamespace

from transfer_bo.runners.task import Attempt, make_task
from transfer_bo.study_file import load_study_file

task = make_task(load_study_file(sys.argv[1]))
HPS = {name: hp.default for name, hp in task.space.hps.items()}


def train(die_at=None):
    curve = []

    def report(progress, loss):
        curve.append((progress, loss))
        if len(curve) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    loss = task.run(Attempt(0, task.file.target, HPS, 1, 1, 0, report))
    return loss, curve


loss, curve = train()
task.clean_up(SimpleNamespace(number=0))
resumed = 0
for die_at in range(1, len(curve) + 1):
    child = os.fork()
    if child == 0:
        train(die_at)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    again, rest = train()
    assert again == loss, (die_at, again, loss)
    assert rest == curve[-len(rest):], (die_at, rest, curve)
    resumed += len(rest) < len(curve)
    task.clean_up(SimpleNamespace(number=0))
print(len(curve), resumed)
"""
"""Train whole, and then again, killed with signal 9 at each report and resumed."""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_training_killed_at_any_report_ends_at_the_same_bits(write_study: WriteStudy) -> None:
    """From the last checkpoint; only a kill before the first one begins anew."""
    path = write_study(("trials = 4", "trials = 4\n[run]\ncheckpoint_seconds = 1e-9"))
    command = [sys.executable, "-W", "ignore", "-c", KILLED_TRAINING, str(path)]

    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    reports, resumed = map(int, ended.stdout.split()) if ended.returncode == 0 else (0, 0)

    assert 0 == ended.returncode, ended.stderr
    assert reports >= 5
    assert resumed >= reports - 2
