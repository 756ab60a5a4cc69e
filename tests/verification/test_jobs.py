"""Verification: exactly the suggested run, at the target, once, beside what was predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
import pytest

from transfer_bo import Diverged, Ladder, Outcome, Scale, TransferSampler, objective, verify
from transfer_bo.attributes import PREDICTION_ATTR, PURPOSE_ATTR
from transfer_bo.errors import StudyError
from transfer_bo.records import read_runs
from transfer_bo.verification.jobs import plan, verified_suggestion
from transfer_bo.verification.running import run_job
from transfer_bo.verification.verdict import Verification

TARGET = Scale(width=64, tokens=1e6)
SUGGESTED, DEFAULTS = {"lr": 0.02}, {"lr": 0.01}


@dataclass
class PredictedLoss:
    """Stands for a projection's prediction."""

    mean: float = 2.0

    def interval(self, level: float) -> tuple[float, float]:
        """Whatever the level."""
        return self.mean - 0.5, self.mean + 0.5


@dataclass
class Suggestion:
    """Stands for `transfer_bo.Suggestion`."""

    target: Scale
    params: dict[str, Any]
    predicted_loss: PredictedLoss


SUGGESTION = Suggestion(TARGET, SUGGESTED, PredictedLoss())


class World:
    """A study with a ladder, and an objective that counts its runs."""

    def __init__(self, loss: float = 2.1) -> None:
        self.ladder = Ladder([Scale(width=16, tokens=1e6), Scale(width=32, tokens=1e6)])
        sampler = TransferSampler(ladder=self.ladder, target=TARGET, seed=0, budget=1e12)
        self.study = optuna.create_study(sampler=sampler)
        self.loss = loss
        self.ran: list[tuple[Scale, float]] = []
        self.objective = objective(self._train)
        self.study.optimize(self.objective, n_trials=1)
        self.ran.clear()

    def _train(self, trial: optuna.Trial) -> float:
        scale = self.ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        self.ran.append((scale, lr))
        trial.report(1e9, step=500)
        if trial.should_prune():
            raise optuna.TrialPruned
        return self.loss + lr


def test_the_suggestion_runs_at_the_target() -> None:
    """Its HPs, its scale, stored as a verification with what was predicted."""
    world = World()

    verification = verify(world.study, world.objective, SUGGESTION)

    run = read_runs(world.study)[-1]
    assert [(TARGET, 0.02)] == world.ran
    assert ("verify", TARGET, Outcome.FINISHED, SUGGESTED) == (
        run.purpose,
        run.scale,
        run.outcome,
        run.params,
    )
    assert 2.0 == world.study.trials[-1].user_attrs[PREDICTION_ATTR]["loss"]
    assert run.loss == verification.measured
    assert verification.inside
    assert "inside the interval" in verification.text


def test_a_target_the_study_never_saw_can_be_verified() -> None:
    """A suggestion for another target runs at that target."""
    world = World()
    elsewhere = Scale(width=128, tokens=2e6)

    verify(world.study, world.objective, Suggestion(elsewhere, SUGGESTED, PredictedLoss()))

    assert [(elsewhere, 0.02)] == world.ran
    assert elsewhere == read_runs(world.study)[-1].scale


def test_trials_in_the_queue_keep_waiting() -> None:
    """A verification runs itself, not whatever comes next."""
    world = World()
    world.study.enqueue_trial({"lr": 0.5})

    verify(world.study, world.objective, SUGGESTION)

    assert [(TARGET, 0.02)] == world.ran
    assert [Outcome.WAITING] == [run.outcome for run in read_runs(world.study) if run.params != SUGGESTED][1:]


def test_controls_run_beside_it_and_nothing_runs_twice() -> None:
    """The same suggestion and the same controls are looked up the second time."""
    world = World()

    first = verify(world.study, world.objective, SUGGESTION, {"defaults": DEFAULTS})
    second = verify(world.study, world.objective, SUGGESTION, {"defaults": DEFAULTS})

    assert [(TARGET, 0.02), (TARGET, 0.01)] == world.ran
    assert first == second
    assert {"defaults": pytest.approx(2.11)} == first.control
    assert "worse than the control run with the defaults" in first.text


def test_a_pruner_does_not_stop_it() -> None:
    """Optuna's pruners compare runs across scales; the one full-size run must not be lost to them."""
    world = World()
    world.study.pruner = optuna.pruners.ThresholdPruner(upper=1.0)

    verification = verify(world.study, world.objective, SUGGESTION)

    assert verification.measured is not None


def test_a_spent_budget_does_not_stop_it() -> None:
    """The budget is the search's."""
    world = World()
    world.study.sampler._budget = 1.0  # type: ignore[attr-defined]

    verify(world.study, world.objective, SUGGESTION)

    assert [(TARGET, 0.02)] == world.ran


def test_a_diverged_verification_is_judged() -> None:
    """It is an answer, if a bad one, and is not repeated."""
    world = World()

    @objective
    def diverges(trial: optuna.Trial) -> float:
        world.ladder.suggest(trial)
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
        raise Diverged("loss 1e9")

    verification = verify(world.study, diverges, SUGGESTION)

    assert verification.measured is None
    assert not verification.inside
    assert "diverged" in verification.text
    assert verification == verify(world.study, world.objective, SUGGESTION)


def test_an_error_is_no_answer() -> None:
    """A run that stopped with an error says nothing, and may be tried again."""
    world = World()

    @objective
    def broken(trial: optuna.Trial) -> float:
        world.ladder.suggest(trial)
        raise OSError("disk full")

    with pytest.raises(StudyError):
        verify(world.study, broken, SUGGESTION)
    assert verify(world.study, world.objective, SUGGESTION).measured is not None


def test_an_interrupted_run_is_closed() -> None:
    """Ctrl-C in the middle leaves a trial that waits, and the next verification takes it up."""
    world = World()
    (job,) = plan(SUGGESTION)

    @objective
    def interrupted(trial: optuna.Trial) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(world.study, interrupted, job)

    assert Outcome.WAITING == read_runs(world.study)[-1].outcome
    assert job.find(world.study) is None
    assert run_job(world.study, world.objective, job) is not None
    assert [Outcome.FINISHED, Outcome.FINISHED] == [run.outcome for run in read_runs(world.study)]


def test_the_suggestion_is_known_until_the_search_goes_on() -> None:
    """What was verified is found again for the same trials and target, and only for those."""
    world = World()
    (job,) = plan(SUGGESTION, n_search=7)
    run_job(world.study, world.objective, job)

    known = verified_suggestion(world.study, TARGET, 7)

    assert known is not None
    assert SUGGESTED == known.params
    assert [job] == plan(known, n_search=7)
    assert verified_suggestion(world.study, TARGET, 8) is None
    assert verified_suggestion(world.study, TARGET.replace(width=128), 7) is None


@pytest.mark.parametrize(
    ("measured", "control", "maximize", "words"),
    [
        (2.0, 2.5, False, ["inside the interval", "20.00% better"]),
        (2.6, 2.5, False, ["0.1000 above", "4.00% worse"]),
        (1.4, 2.8, False, ["0.1000 below", "50.00% better"]),
        (2.0, 1.6, True, ["inside the interval", "25.00% better"]),
        (2.0, 2.0, False, ["as good as"]),
        (2.0, None, False, ["gave no loss"]),
    ],
)
def test_the_verdict_in_words(
    measured: float, control: float | None, maximize: bool, words: list[str]
) -> None:
    """Inside or outside and by how much; better or worse than the control and by how much."""
    verification = Verification(TARGET, measured, 2.0, (1.5, 2.5), {"defaults": control}, maximize=maximize)

    assert all(word in verification.text for word in words), verification.text


def test_purposes_are_told_apart() -> None:
    """A control run is no verification even with the same HPs."""
    world = World()

    verify(world.study, world.objective, SUGGESTION, {"copied": SUGGESTED})

    purposes = [trial.user_attrs.get(PURPOSE_ATTR) for trial in world.study.trials]
    assert [None, "verify", "control"] == purposes


def test_verifying_no_suggestion_is_refused() -> None:
    """The sentence says what was passed."""
    world = World()

    with pytest.raises(StudyError, match="None"):
        verify(world.study, world.objective, None)  # type: ignore[arg-type]
