"""An analytic bowl that answers like a `Fit`: what the report shows is known exactly."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from transfer_bo.attributes import (
    CONTROL_ATTR,
    ERROR_ATTR,
    OUTCOME_ATTR,
    PREDICTION_ATTR,
    PURPOSE_ATTR,
    SCALE_ATTR,
    SECONDS_ATTR,
    SETTINGS_ATTR,
)
from transfer_bo.projection import Baseline
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Ladder, Scale, default_cost

CURVATURE = {
    "lr": 0.05,
    "lr.embedding": 0.01,
    "weight_decay": 0.005,
    "residual.attn": 0.02,
    "init_std": 0.001,
}
CENTRE = {"lr": -7.0, "lr.embedding": 1.0, "weight_decay": -3.0, "residual.attn": 0.5, "init_std": 0.0}
BOUNDS = {
    "lr": (2**-11, 2**-4),
    "lr.embedding": (0.125, 8.0),
    "weight_decay": (1e-3, 1.0),
    "residual.attn": (0.25, 4.0),
    "init_std": (0.25, 4.0),
}
DRIFT = 0.1
SD = 0.3
LADDER = [
    Scale(width=32, depth=2, batch=16, tokens=300_000),
    Scale(width=64, depth=2, batch=16, tokens=300_000),
    Scale(width=32, depth=4, batch=16, tokens=600_000),
    Scale(width=64, depth=4, batch=16, tokens=600_000),
]
TARGET = Scale(width=128, depth=4, batch=16, tokens=2_500_000)


class FakeFit:
    """The bowl: loss = law(scale) + Σ c (z − z*(scale))², z* drifts by 0.1 octaves per width doubling."""

    def __init__(self, runs: list[Run], rungs: int = 4, hps: list[str] | None = None) -> None:
        self.runs = runs
        self.ladder = Ladder(LADDER[:rungs])
        self.target = TARGET
        self.hps = list(CURVATURE) if hps is None else hps
        scales = (*LADDER[:rungs], TARGET)
        self.settings = StudySettings(
            scales=scales,
            proxies=tuple(range(rungs)),
            target=TARGET,
            costs=tuple(default_cost(scale) for scale in scales),
            defaults=dict.fromkeys(self.hps, 1.0),
            budget=1.5 * default_cost(TARGET),
            seed=7,
        )

    def law(self, scale: Scale) -> float:
        """Loss at the optimum of a scale."""
        return 1.5 + 1.2 * (default_cost(scale) / default_cost(LADDER[0])) ** -0.12

    def best(self, hp: str, scale: Scale) -> float:
        """z*: log2 of the optimum."""
        return CENTRE.get(hp, 0.0) + DRIFT * math.log2(scale.width / 32)

    def loss(self, params: dict[str, float], scale: Scale) -> float:
        """The bowl at a point."""
        return self.law(scale) + sum(
            CURVATURE.get(hp, 0.01) * (math.log2(value) - self.best(hp, scale)) ** 2
            for hp, value in params.items()
        )

    def curve(self, hp: str, scale: Scale, n: int = 81) -> Any:
        """Along one HP, the others at their optimum."""
        low, high = BOUNDS.get(hp, (0.25, 4.0))
        z = np.linspace(math.log2(low), math.log2(high), n)
        mean = self.law(scale) + CURVATURE.get(hp, 0.01) * (z - self.best(hp, scale)) ** 2
        sd = 0.01 + 0.01 * abs(z - CENTRE.get(hp, 0.0)) + (0.03 if scale == self.target else 0)
        return 2**z, mean, mean - sd, mean + sd

    def optimum(self, scale: Scale) -> dict[str, tuple[float, float, float]]:
        """Best value and 90% interval."""
        wide = 1.645 * SD * (1.5 if scale == self.target else 1)
        z = {hp: self.best(hp, scale) for hp in self.hps}
        return {hp: (2**v, 2 ** (v - wide), 2 ** (v + wide)) for hp, v in z.items()}

    def importance(self, scale: Scale) -> dict[str, float]:
        """Shares of the curvature."""
        total = sum(CURVATURE.get(hp, 0.01) for hp in self.hps)
        return {hp: CURVATURE.get(hp, 0.01) / total for hp in self.hps}

    def suggest(self, target: Scale | None = None) -> Any:
        """The known optimum at the target."""
        scale = target or self.target
        optimum = self.optimum(scale)
        mean = self.law(scale)
        prior = {"mean": 0.0, "sd": SD, "prior_mean": 0.0, "prior_sd": 0.5}
        return SimpleNamespace(
            target=scale,
            params={hp: best for hp, (best, _, _) in optimum.items()},
            interval=lambda level: {hp: (low, high) for hp, (_, low, high) in optimum.items()},
            predicted_loss=SimpleNamespace(mean=mean, interval=lambda level: (mean - 0.04, mean + 0.04)),
            drift={
                hp: {
                    "width": {**prior, "mean": DRIFT, "sd": 0.06},
                    "depth": dict(prior),
                    "tokens": {**prior, "mean": -0.05, "sd": 0.1},
                }
                for hp in self.hps
            },
            undetermined=(),
            baselines={
                "best run copied": Baseline(
                    params={}, excess_loss=0.1, difference=0.05, probability=0.8, is_within_noise=False
                )
            },
            provenance={},
            divergence_probability=0.02,
            stability_edges={},
            warnings=["lr.embedding: the interval spans most of its range."],
            to_json=lambda: {"params": {hp: best for hp, (best, _, _) in optimum.items()}},
        )


def make_runs(count: int = 40, *, verified: bool = True, seed: int = 0, rungs: int = 4) -> list[Run]:
    """Random runs on the first rungs, some pruned or diverged, then verification and control."""
    rng = np.random.default_rng(seed)
    fit = FakeFit([], rungs)
    runs = []
    for number in range(count):
        scale = LADDER[number % rungs]
        params = {hp: float(2 ** rng.uniform(*np.log2(bounds))) for hp, bounds in BOUNDS.items()}
        loss = fit.loss(params, scale) + float(rng.normal(0, 0.01))
        outcome = Outcome.PRUNED if number % 5 == 3 else Outcome.FINISHED
        if number % 11 == 10:
            outcome = Outcome.DIVERGED
        finished = outcome is Outcome.FINISHED
        runs.append(
            Run(
                number=number,
                params=params,
                scale=scale,
                outcome=outcome,
                loss=loss if finished else None,
                curve={0.25: loss + 1.0} | ({1.0: loss} if finished else {}),
                seconds=4.0 if finished else 1.0,
            )
        )
    if verified:
        best = fit.suggest().params
        defaults = dict.fromkeys(best, 1.0)
        mean = fit.law(TARGET)
        done = Outcome.FINISHED
        runs.append(Run(count, best, TARGET, done, mean + 0.01, {1.0: 2.0}, 90.0, "verify"))
        runs.append(Run(count + 1, defaults, TARGET, done, mean + 0.11, {1.0: 2.1}, 90.0, "control"))
    return runs


def make_study(runs: list[Run], settings: StudySettings | None = None, name: str = "bowl") -> optuna.Study:
    """An Optuna study in memory that holds these runs as a search and a verification leave them."""
    study = optuna.create_study(study_name=name)
    if settings is not None:
        study.set_user_attr(SETTINGS_ATTR, settings.to_json())
    states = {Outcome.FINISHED: TrialState.COMPLETE, Outcome.PRUNED: TrialState.PRUNED}
    mean = FakeFit([]).law(TARGET)
    for run in runs:
        attrs: dict[str, Any] = {OUTCOME_ATTR: str(run.outcome), SECONDS_ATTR: run.seconds}
        attrs |= {} if run.scale is None else {SCALE_ATTR: dict(run.scale)}
        if run.outcome is Outcome.DIVERGED:
            attrs[ERROR_ATTR] = "Diverged: the loss is nan at postgresql://me:secret@db/x"
        if run.purpose != "search":
            attrs[PURPOSE_ATTR] = run.purpose
        if run.purpose == "verify":
            said = {"params": run.params, "loss": mean, "interval": [mean - 0.04, mean + 0.04], "level": 0.9}
            attrs[PREDICTION_ATTR] = said
        if run.purpose == "control":
            attrs[CONTROL_ATTR] = "documented defaults"
        study.add_trial(
            optuna.create_trial(
                state=states.get(run.outcome, TrialState.FAIL),
                value=run.loss,
                params=run.params,
                distributions={hp: FloatDistribution(1e-6, 1e3, log=True) for hp in run.params},
                intermediate_values={round(1000 * at): loss for at, loss in run.curve.items()},
                user_attrs=attrs,
            )
        )
    return study
