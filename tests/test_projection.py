"""From a study to what to set at the target."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
import torch

import transfer_bo as tb
from transfer_bo.attributes import OUTCOME_ATTR
from transfer_bo.errors import ScaleError, StudyError
from transfer_bo.projection import PredictedLoss, Projection, fit_study
from transfer_bo.records import Outcome
from transfer_bo.surrogate.expected_loss import excess_loss

RUNGS = [tb.Scale(width=w, tokens=t) for w, t in [(32, 1e5), (64, 1e5), (128, 1e5), (64, 4e5), (128, 4e5)]]
TARGET = tb.Scale(width=512, tokens=1.6e6)
DRIFT = -0.5
"""Octaves of lr per doubling of width in the analytic loss."""


def loss_at(scale: tb.Scale, lr: float) -> float:
    """A law in width and tokens; the best lr falls by half an octave per doubling of width."""
    law = 1 + (scale.width / 32) ** -0.5 + 0.5 * (scale.tokens / 1e5) ** -0.4
    z = math.log2(lr) + 6 - DRIFT * math.log2(scale.width / 32)
    return law * math.exp(0.02 * z**2)


def study_of_runs(
    n_per_rung: int = 8, coordinates: str = "raw", noise: float = 0.002, **options: Any
) -> optuna.Study:
    """A finished study: runs spread over lr at every rung, given to Optuna one by one."""
    ladder = tb.Ladder(RUNGS)
    sampler = tb.TransferSampler(ladder=ladder, target=TARGET, coordinates=coordinates, seed=0, **options)
    study = optuna.create_study(sampler=sampler)
    rng = np.random.default_rng(0)
    for index, scale in enumerate(RUNGS):
        for _ in range(n_per_rung):
            lr = 2 ** (-6 + DRIFT * math.log2(scale.width / 32) + rng.uniform(-2.5, 2.5))
            study.enqueue_trial({"rung": index, "lr": lr})
            trial = study.ask()
            ladder.suggest(trial)
            trial.suggest_float("lr", 2**-14, 2**-1, log=True)
            study.tell(trial, loss_at(scale, lr) * math.exp(noise * rng.normal()))
    return study


@pytest.fixture(scope="module")
def fitted() -> Projection:
    """The fit to 40 runs."""
    return fit_study(study_of_runs())


def test_drift_is_recovered(fitted: Projection) -> None:
    """The drift along width lies within two sd of the truth and is much better known than before."""
    drift = fitted.drift()["lr"]["width"]

    assert abs(drift["mean"] - DRIFT) < 2 * drift["sd"]
    assert drift["sd"] < 0.6 * drift["prior_sd"]


def test_suggestion_at_an_unseen_scale(fitted: Projection) -> None:
    """At 4x width and tokens the suggestion costs under 1%, and the intervals hold the truth."""
    suggestion = fitted.suggest()
    best = 2 ** (-6 + DRIFT * 4)

    low, high = suggestion.interval(0.95)["lr"]
    loss_low, loss_high = suggestion.predicted_loss.interval(0.95)

    assert loss_at(TARGET, suggestion.params["lr"]) / loss_at(TARGET, best) < 1.01
    assert low < best < high
    assert loss_low < loss_at(TARGET, best) < loss_high
    assert loss_low < suggestion.predicted_loss.mean < loss_high


@pytest.mark.parametrize("n_per_rung", [1, 2, 4])
def test_setting_and_interval_rest_on_the_same_draws(n_per_rung: int) -> None:
    """Where the bowl says all, no point of a fine grid has less expected loss over the interval's draws."""
    fit = fit_study(study_of_runs(n_per_rung))
    fitted = fit.surrogate.model.hyperparameters
    negligible = replace(fitted, log_residual=torch.tensor(math.log(1e-9)).double())
    surrogate = replace(fit.surrogate, model=fit.surrogate.model.with_fit(hyperparameters=negligible))
    suggestion = Projection(surrogate, fit.runs, fit.settings).suggest()
    chosen = float(surrogate.coordinates.z(suggestion.params))
    draws = torch.stack([surrogate.coordinates.z({"lr": lr}) for lr in suggestion.optimum["lr"]])

    z = torch.linspace(chosen - 2, chosen + 2, 4001, dtype=torch.double)
    loss = excess_loss(surrogate, z[:, None, None], fit.target, draws).mean(-1)

    assert abs(float(z[loss.argmin()]) - chosen) < 0.005  # the grid's step is .001, the descent stops as near


def test_a_drift_prior_of_no_hp_is_remarked() -> None:
    """A misspelt HP in `drift_prior` changes nothing, and the suggestion says so."""
    study = study_of_runs(1, drift_prior={"learning_rate": {"width": (0.0, 0.1)}})

    warnings = fit_study(study).suggest().warnings

    assert any("drift_prior names learning_rate, but the HPs are lr." in warning for warning in warnings)


def test_higher_levels_give_wider_intervals(fitted: Projection) -> None:
    """Intervals nest."""
    suggestion = fitted.suggest()
    levels = [suggestion.interval(level)["lr"] for level in (0.5, 0.8, 0.95)]

    for (inner_low, inner_high), (outer_low, outer_high) in itertools.pairwise(levels):
        assert outer_low <= inner_low < inner_high <= outer_high


def test_json_is_plain_and_has_the_promised_keys(fitted: Projection) -> None:
    """`to_json` survives JSON and carries params, intervals, predicted loss and drift."""
    plain = json.loads(json.dumps(fitted.suggest().to_json()))

    assert {"params", "intervals", "predicted_loss", "drift"} <= plain.keys()
    assert plain["params"].keys() == plain["intervals"].keys() == plain["drift"].keys() == {"lr"}
    assert plain["drift"]["lr"].keys() == {"width", "tokens"}
    assert plain["predicted_loss"].keys() == {"mean", "interval"}
    assert plain["target"] == {"width": 512, "tokens": 1600000}


def test_same_study_same_suggestion(fitted: Projection) -> None:
    """Asking twice gives the same answer to the last digit."""
    assert fitted.suggest().to_json() == fitted.suggest().to_json()


def test_curve_has_its_lowest_point_at_the_optimum(fitted: Projection) -> None:
    """The loss along one HP is least where `optimum` says, within its interval, and lies inside its band."""
    for scale in (RUNGS[0], TARGET):
        values, mean, low, high = fitted.curve("lr", scale)
        _, lowest, highest = fitted.optimum(scale)["lr"]

        assert lowest <= values[mean.argmin()] <= highest
        assert (low <= mean).all()
        assert (mean <= high).all()


def test_importances_are_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """An HP that does nothing gets a small share, and the shares sum to 1, or to 0 in a flat bowl."""
    ladder = tb.Ladder(RUNGS[:2])
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=0))

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        trial.suggest_float("weight_decay", 1e-3, 1.0)
        return loss_at(scale, trial.suggest_float("lr", 1e-4, 1e-1, log=True))

    study.optimize(objective, n_trials=14)
    fit = fit_study(study)
    shares = fit.importance(RUNGS[0])

    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["lr"] > 0.9
    monkeypatch.setattr(fit.surrogate.landscape, "bowl", lambda theta, v, s: v.new_zeros(len(v)))
    assert dict.fromkeys(shares, 0.0) == fit.importance(RUNGS[0])


def test_warnings_say_what_the_answer_rests_on() -> None:
    """One width seen and a target far beyond it: both are said."""
    study = study_of_runs(n_per_rung=3)
    far = tb.Scale(width=32768, tokens=1.6e6)

    warnings = tb.suggest(study, target=far).warnings

    assert any("8.0 doublings of width beyond" in warning for warning in warnings)


def test_optimum_at_the_edge_is_said() -> None:
    """A range that ends before the optimum is noticed."""
    ladder = tb.Ladder(RUNGS)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=0))
    study.optimize(
        lambda trial: loss_at(ladder.suggest(trial), trial.suggest_float("lr", 2**-14, 2**-9, log=True)),
        n_trials=12,
    )

    warnings = tb.suggest(study, target=RUNGS[0]).warnings

    assert any("edge of the searched range" in warning for warning in warnings)


def test_preempted_and_failed_runs_teach_nothing() -> None:
    """Trials that ended for reasons other than their HPs leave the suggestion as it was."""
    study = study_of_runs(n_per_rung=4)
    before = tb.suggest(study).params
    for outcome in (Outcome.PREEMPTED, Outcome.ERROR, Outcome.OUT_OF_MEMORY):
        trial = study.ask(fixed_distributions=None)
        trial.suggest_float("lr", 2**-14, 2**-1, log=True)
        trial.set_user_attr(OUTCOME_ATTR, str(outcome))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)

    assert tb.suggest(study).params == pytest.approx(before, rel=1e-6)


def test_a_study_without_a_ladder_is_refused() -> None:
    """There is nothing to project in a plain study."""
    study = optuna.create_study()

    with pytest.raises(StudyError):
        tb.suggest(study)


def test_nothing_finished_is_said() -> None:
    """A study whose runs all diverged has nothing to fit."""
    ladder = tb.Ladder(RUNGS)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=0))

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        ladder.suggest(trial)
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return math.inf

    study.optimize(objective, n_trials=3)

    with pytest.raises(tb.TransferError, match="No run has finished"):
        tb.suggest(study)


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0])
def test_a_level_is_a_probability(fitted: Projection, level: float) -> None:
    """A level outside (0, 1) is refused with its value."""
    with pytest.raises(tb.TransferError, match=str(level)):
        fitted.suggest().interval(level)


def test_an_axis_the_study_never_varied_is_not_ignored() -> None:
    """A target on an axis that all runs share is another answer, and the reader learns what it rests on."""
    ladder = tb.Ladder([tb.Scale(width=32, tokens=1e5), tb.Scale(width=64, tokens=1e5)])
    close, far = tb.Scale(width=256, tokens=1e5), tb.Scale(width=256, tokens=1e7)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=close, seed=0))
    study.optimize(
        lambda trial: loss_at(ladder.suggest(trial), trial.suggest_float("lr", 1e-4, 1e-1, log=True)),
        n_trials=8,
    )
    short, long = tb.suggest(study), tb.suggest(study, target=far)

    assert long.predicted_loss.mean < short.predicted_loss.mean
    assert any("tokens = 1e+07 changes rests on the prior" in warning for warning in long.warnings)
    assert not short.warnings
    with pytest.raises(ScaleError, match=r"tokens = 1e\+07"):
        fit_study(study).suggest(far)


def test_suggestion_keeps_to_the_grid() -> None:
    """An HP with steps is suggested on a step, so that the target can be run with exactly that."""
    ladder = tb.Ladder(RUNGS)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=0))

    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        heads = trial.suggest_int("heads", 8, 64, step=8)
        drop = trial.suggest_float("drop", 0.0, 0.5, step=0.1)
        return loss_at(scale, 0.01) * (1 + (heads - 27) ** 2 / 1e4 + (drop - 0.23) ** 2)

    study.optimize(objective, n_trials=10)
    params = tb.suggest(study).params

    assert params["heads"] % 8 == 0
    assert round(params["drop"] * 10) == pytest.approx(params["drop"] * 10)


def test_verification_of_an_objective_with_a_fixed_hp() -> None:
    """A fixed HP is in the run and in the suggestion; the run is found again, and not repeated."""
    ladder = tb.Ladder(RUNGS)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=0))
    calls = []

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        calls.append(scale)
        trial.suggest_float("weight_decay", 0.1, 0.1)
        return loss_at(scale, trial.suggest_float("lr", 1e-4, 1e-1, log=True))

    study.optimize(objective, n_trials=6)
    suggestion = tb.suggest(study)
    first = tb.verify(study, objective, suggestion)
    again = tb.verify(study, objective, suggestion)

    assert first.measured == again.measured == loss_at(TARGET, suggestion.params["lr"])
    assert calls.count(TARGET) == 1


def test_a_heavy_tail_does_not_make_the_mean() -> None:
    """A few absurd draws leave the predicted loss inside its own interval."""
    draws = np.sort(np.concatenate([np.linspace(1.0, 2.0, 98), [1e6, 1e9]]))
    predicted = PredictedLoss(draws)
    low, high = predicted.interval(0.9)

    assert low < predicted.mean < high


def test_a_predicted_loss_prints_its_mean_and_interval() -> None:
    """`print` shows numbers, not a type."""
    predicted = PredictedLoss(np.linspace(1.0, 2.0, 101))

    assert "1.5 (90% interval: 1.05 to 1.95)" == str(predicted)


@pytest.mark.parametrize(("name", "warned"), [("init_std.q", True), ("residual.attn", True), ("lr.q", False)])
def test_multipliers_that_may_not_outlive_short_runs_are_named(name: str, warned: bool) -> None:
    """Those of init_std and residual branches, where all runs are equally long; not those of rates."""
    ladder = tb.Ladder([tb.Scale(width=32, tokens=1e5), tb.Scale(width=64, tokens=1e5)])
    target = tb.Scale(width=256, tokens=1e7)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=target, seed=0))

    def loss(trial: optuna.Trial) -> float:
        scale, factor = ladder.suggest(trial), trial.suggest_float(name, 0.25, 4.0, log=True)
        return loss_at(scale, trial.suggest_float("lr", 1e-4, 1e-1, log=True)) * 1.01 ** math.log2(factor)

    study.optimize(loss, n_trials=6)

    assert any(f"like {name}, found in short runs" in said for said in tb.suggest(study).warnings) == warned


@pytest.mark.parametrize("low", [1 / 16, 1 / 2])
def test_hps_that_no_run_varied_keep_their_value(low: float) -> None:
    """Whatever their range, and though their optimum is uncertain; what was varied is still suggested."""
    ladder = tb.Ladder([tb.Scale(width=64, tokens=1e5), tb.Scale(width=128, tokens=1e5)])
    target = tb.Scale(width=1024, tokens=1e5)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=target, seed=0))
    names = [f"lr.g{i}" for i in range(3)]
    for number, z in enumerate([-9.0, -8.0, -7.0, -6.0, -5.0, -4.0]):
        study.enqueue_trial(
            {"rung": number % 2, "lr": 2.0**z, "weight_decay": 0.1} | dict.fromkeys(names, 1.0)
        )

    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 2**-12, 2**-3, log=True)
        trial.suggest_float("weight_decay", 0.01, 1.0, log=True)
        for name in names:
            trial.suggest_float(name, low, 8.0, log=True)
        return loss_at(scale, lr)

    study.optimize(objective, n_trials=6)
    suggestion = tb.suggest(study)

    assert {"weight_decay", *names} == set(suggestion.undetermined)
    assert {"weight_decay": 0.1} | dict.fromkeys(names, 1.0) == {
        name: suggestion.params[name] for name in suggestion.undetermined
    }
    assert suggestion.params["lr"] not in {2.0**z for z in range(-9, -3)}
