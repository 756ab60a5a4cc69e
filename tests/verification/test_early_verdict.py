"""The early verdict: the curve predicted for the target, runs that follow it, fall behind, or diverge."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from transfer_bo import Ladder, Outcome, Scale, TransferSampler, objective, verify
from transfer_bo.attributes import PREDICTION_ATTR
from transfer_bo.display.progress import Progress
from transfer_bo.projection import suggest
from transfer_bo.records import Run, read_runs
from transfer_bo.store.trial_queue import add_running_trial
from transfer_bo.verification.early_verdict import Track, judge_early, verdict_changes
from transfer_bo.verification.jobs import plan, verified_suggestion
from transfer_bo.verification.monitor import Watch, stored_curve
from transfer_bo.verification.predicted_curve import PredictedCurve, predict_curve

TARGET = Scale(width=64, tokens=1e6)
SCALES = [Scale(width=16, tokens=1e6), Scale(width=32, tokens=1e6)]
ASYMPTOTE = 1.0


def loss_at(progress: float, end: float) -> float:
    """A family of curves that collapse exactly: r(p) = p^-.3 above the asymptote."""
    return ASYMPTOTE + (end - ASYMPTOTE) * progress**-0.3


def curve(end: float, n: int = 10, until: float = 1.0) -> dict[float, float]:
    """The reports of a run, up to a progress."""
    return {i / n: loss_at(i / n, end) for i in range(1, n + 1) if i / n <= until + 1e-9}


def proxies(noise: float = 0.01) -> list[Run]:
    """Six runs at each of two scales, with a noise that does not change the form."""
    generator = np.random.default_rng(0)
    ends = [3.0 + 0.05 * i + noise * generator.normal() for i in range(6)]
    return [
        Run(
            i,
            {},
            scale,
            Outcome.FINISHED,
            end - 0.3 * (scale.width == 32),
            curve(end - 0.3 * (scale.width == 32)),
        )
        for scale in SCALES
        for i, end in enumerate(ends)
    ]


@pytest.fixture
def predicted() -> PredictedCurve:
    """The target's curve, whose end is known to be between 2.3 and 2.5."""
    found = predict_curve(proxies(), TARGET, {}, (2.3, 2.5))
    assert found is not None
    return found


def test_the_band_holds_the_curve_of_the_target(predicted: PredictedCurve) -> None:
    """At every progress, and its end is the predicted interval."""
    for progress in np.linspace(0.1, 1.0, 10):
        median, low, high = predicted.band(progress)
        assert low < loss_at(progress, 2.4) < high
        assert loss_at(progress, 2.4) == pytest.approx(median, rel=0.05)
    assert (2.3, 2.5) == pytest.approx(predicted.band(1.0)[1:], abs=0.05)
    low, high = predicted.end_from(0.5, loss_at(0.5, 2.4))[1:]
    assert low < 2.4 < high


def test_the_prediction_is_stored_as_plain_values(predicted: PredictedCurve) -> None:
    """With a trial, in the storage."""
    assert predicted == PredictedCurve.from_json(json.loads(json.dumps(predicted.to_json())))


def test_the_curve_of_an_earlier_release_is_not_judged(predicted: PredictedCurve) -> None:
    """It was stored with an asymptote, without which it means another curve."""
    plain = predicted.to_json()

    assert predicted == stored_curve({"curve": plain})
    assert stored_curve({"curve": {**plain, "asymptote": 1.0}}) is None
    assert stored_curve({"curve": None}) is None
    assert stored_curve(None) is None


@given(st.floats(0, 6), st.floats(0.5, 6))
def test_the_farther_the_target_the_wider(near: float, farther: float) -> None:
    """And far away the form is the mean of the proxies', however steeply it changes among them."""
    steep = [
        replace(run, curve={p: run.loss * p ** (-0.05 * run.scale.width / 16) for p in run.curve})
        for run in proxies()
    ]

    def form(doublings: float) -> tuple[float, float]:
        found = predict_curve(steep, Scale(width=32 * 2**doublings, tokens=1e6), {}, (2.3, 2.5))
        assert found is not None
        return found.ratio_at(0.2)

    assert form(near)[1] < form(near + farther)[1]
    assert 3 * form(0)[1] < form(8)[1]
    assert -0.05 * math.log(0.2) < form(40)[0] < -0.1 * math.log(0.2)


def test_the_form_is_that_of_the_settings_hps() -> None:
    """Runs at larger learning rates fall later; HPs that are texts or zero are left out."""
    runs = [
        replace(
            run,
            params={"lr": 2.0**i, "decay": 0.0, "norm": "rms"},
            curve={p: run.loss * p ** (-0.1 - 0.01 * i) for p in run.curve},
        )
        for i, run in enumerate(proxies()[:6] * 3)
    ]
    forms = [
        predict_curve(runs, TARGET, {"lr": lr, "decay": 0.0, "norm": "rms"}, (2.3, 2.5))
        for lr in (2.0**12, 2.0**16)
    ]

    means = [found.ratio_at(0.2)[0] for found in forms if found is not None]
    slope = (means[1] - means[0]) / 4 / -math.log(0.2)
    assert slope == pytest.approx(0.01, rel=0.2)


def test_too_few_curves_predict_nothing() -> None:
    """Nor do metrics that are not positive."""
    assert predict_curve(proxies()[:6], TARGET, {}, (2.3, 2.5)) is None
    assert predict_curve(proxies(), TARGET, {}, (-0.1, 2.5)) is None


def test_a_run_that_goes_as_predicted_is_on_track(predicted: PredictedCurve) -> None:
    """From the first progress at which proxies reported; before it is too early."""
    changes = verdict_changes(predicted, curve(2.4, n=50))

    assert [Track.TOO_EARLY, Track.ON_TRACK] == [verdict.track for verdict in changes]
    assert 0.1 == changes[1].progress


def test_a_run_that_does_worse_is_below_the_band(predicted: PredictedCurve) -> None:
    """After three reports; the end that it is heading for is that of its own curve."""
    verdict = judge_early(predicted, curve(3.0, n=50, until=0.4))

    assert verdict_changes(predicted, curve(3.0, n=50))[-1].track is Track.BELOW
    assert verdict.end is not None
    assert verdict.end[0] < 3.0 < verdict.end[1]
    assert "below the band" in verdict.text
    assert "40%" in verdict.text


def test_better_than_predicted_is_on_track(predicted: PredictedCurve) -> None:
    """And said."""
    verdict = judge_early(predicted, curve(1.9, until=0.4))

    assert Track.ON_TRACK is verdict.track
    assert "better than predicted" in verdict.text


@pytest.mark.parametrize(
    ("n_high", "track"), [(1, Track.ON_TRACK), (2, Track.ON_TRACK), (3, Track.DIVERGING)]
)
def test_a_loss_that_stays_high_after_a_fall_diverges(
    predicted: PredictedCurve, n_high: int, track: Track
) -> None:
    """A spike of one or two reports does not."""
    losses = curve(2.4, n=50, until=0.4)
    losses |= {0.4 + 0.02 * (i + 1): 4.5 for i in range(n_high)}

    assert track is judge_early(predicted, losses).track


def test_a_loss_that_is_not_finite_diverges(predicted: PredictedCurve) -> None:
    """At once."""
    assert Track.DIVERGING is judge_early(predicted, {0.2: math.nan}).track


class World:
    """A study of proxies that collapse, whose run at the target goes wrong from some progress on."""

    def __init__(self, breaks_at: float) -> None:
        self.breaks_at = breaks_at
        self.ladder = Ladder(SCALES)
        self.study = optuna.create_study(sampler=TransferSampler(ladder=self.ladder, target=TARGET, seed=0))
        self.reported: list[float] = []
        self.objective = objective(self._train)
        self.study.optimize(self.objective, n_trials=10)

    def _train(self, trial: optuna.Trial) -> float:
        scale = self.ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        end = 1.5 + scale.width**-0.5 + 0.01 * (math.log2(lr) + 5) ** 2
        n = 50 if scale == TARGET else 10
        for progress, loss in curve(end, n).items():
            is_broken = scale == TARGET and progress >= self.breaks_at
            trial.report(5.0 if is_broken else loss, step=round(1000 * progress))
            if scale == TARGET:
                self.reported.append(progress)
        return end


@pytest.fixture(scope="module")
def broken() -> tuple[World, Any, Any]:
    """A study, its suggestion, and the verification of it, which diverges at 40%."""
    world = World(breaks_at=0.4)
    suggestion = suggest(world.study)
    return world, suggestion, verify(world.study, world.objective, suggestion)


def test_a_diverging_verification_is_stopped_and_recorded(broken: tuple[World, Any, Any]) -> None:
    """At the third high report, as diverged; the surrogate learns from it."""
    world, _, verification = broken

    run = read_runs(world.study)[-1]
    assert 0.42 == world.reported[-1]  # the report at 44% raised
    assert (Outcome.DIVERGED, None) == (run.outcome, run.loss)
    assert Track.DIVERGING is verification.early[-1].track
    assert "diverging from 44%" in verification.text


def test_after_a_divergence_the_next_setting_is_safer(broken: tuple[World, Any, Any]) -> None:
    """Its learning rate is at least halved, and the diverged suggestion is not taken again."""
    world, suggestion, verification = broken

    assert verification.next_params["lr"] <= suggestion.params["lr"] / 2
    assert f"{verification.next_params['lr']:.4g}" in verification.text
    assert verified_suggestion(world.study, TARGET, 0) is None


def test_progress_shows_the_verdict_and_the_time_left(
    predicted: PredictedCurve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line when the verdict changes; the time left by the pace of the reports."""
    clock = [0.0]
    monkeypatch.setattr("transfer_bo.verification.monitor.time.monotonic", lambda: clock[0])
    study = optuna.create_study()
    job = plan(_Suggestion(), curve=predicted.to_json())[0]
    trial_id = add_running_trial(study, {}, job.attributes())
    output = io.StringIO()
    watch = Watch(study)
    progress = Progress(study, budget=None, target_cost=1, console=Console(file=output), watch=watch)
    assert PREDICTION_ATTR in study.trials[0].user_attrs

    for now, until in ((0.0, 0.3), (100.0, 0.4)):
        clock[0] = now
        for p, loss in curve(2.4, until=until).items():
            study._storage.set_trial_intermediate_value(trial_id, round(1000 * p), loss)
        progress.update(now=True)

    _, _, remaining = watch()[0]
    assert 600.0 == pytest.approx(remaining)
    verdict, status = (line for line in output.getvalue().splitlines() if "on track" in line)
    assert "time left unknown" in verdict
    assert "about 10 min left" in status


class _Suggestion:
    """Stands for a suggestion."""

    target = TARGET
    params: dict[str, Any] = {"lr": 0.1}  # noqa: RUF012

    class predicted_loss:  # noqa: N801
        """Stands for its loss."""

        mean = 2.4

        @staticmethod
        def interval(level: float) -> tuple[float, float]:
            """Whatever the level."""
            return 2.3, 2.5
