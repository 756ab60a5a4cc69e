"""Per-module search at the proxy: staged search with the surrogate against its rivals, run for run.

    OMP_NUM_THREADS=1 python studies/per_module/search.py --seeds 0 1 2

Every arm of a seed begins with the same 20 runs that tune the global HPs, then makes 50 of its own with all
35 HPs, starting from what those found: staged search in a trust region (`transfer_bo.TransferSampler`),
trust-region random search, TPE, Optuna's GPSampler, separable CMA-ES. Others are staged search of a part of
the HPs: "global" spends the 50 on the global HPs alone, "lr only" has multipliers of lr alone, "no depth" all
but those over depth, and so on (`problem.PARTS`). What each arm would pick after 25 and 50 runs is trained
again with new seeds, the same for all arms. Rows go to `search.csv`; the same command goes on where it
stopped. `pip install cmaes` for CMA-ES.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from problem import BASE, GLOBAL, PARTS, Rows, per_module

import transfer_bo as tb
from transfer_bo.attributes import OUTCOME_ATTR, RUNG, SCALE_ATTR
from transfer_bo.records import Outcome, read_dimensions, read_runs, read_settings
from transfer_bo.space import Space

FIRST, THEN = 20, 50
CHECKPOINTS = (25, 50)
REPLICAS = 10
TARGET = BASE.replace(width=128)
FAILED = math.log(256)
"""What a diverged run is worth to rivals that know no divergence: the loss of knowing nothing."""
RunRow = Mapping[str, Any]


def run_seed(seed: int, number: int) -> int:
    """Weights and data of a search run; each has its own, the same number the same in all arms."""
    return 1000 * seed + number + 1


def fresh_seed(seed: int, replica: int) -> int:
    """Weights and data that no search has seen."""
    return 1000 * seed + 900 + replica


# ---- arms: (rows so far) -> HPs of the next run -------------------------------------------------


def transfer_sampler(space: Space, rows: Sequence[RunRow], seed: int, **options: Any) -> dict[str, float]:
    """The package's own sampler."""
    study = transfer_study(space, rows, seed, **options)
    trial = study.ask()
    study.sampler._ladder.suggest(trial)  # type: ignore[attr-defined]
    return space.suggest(trial)


def transfer_study(space: Space, rows: Sequence[RunRow], seed: int, **options: Any) -> optuna.Study:
    """An Optuna study that holds the rows."""
    sampler = tb.TransferSampler(
        ladder=tb.Ladder([BASE]),
        target=TARGET,
        cost=lambda scale: 1.0 if scale == BASE else 16.0,
        budget=float(FIRST + THEN),
        defaults=space.defaults,
        seed=seed,
        **options,
    )
    study = optuna.create_study(sampler=sampler)
    for row in rows:
        diverged = not math.isfinite(row["loss"])
        study.add_trial(
            optuna.trial.create_trial(
                params={**_inside(row["params"], space), RUNG: 0},
                distributions={**distributions(space), RUNG: optuna.distributions.IntDistribution(0, 1)},
                value=None if diverged else row["loss"],
                state=optuna.trial.TrialState.FAIL if diverged else optuna.trial.TrialState.COMPLETE,
                user_attrs={
                    SCALE_ATTR: dict(BASE),
                    OUTCOME_ATTR: str(Outcome.DIVERGED if diverged else Outcome.FINISHED),
                },
            )
        )
    if not rows:
        study.enqueue_trial({RUNG: 0, **space.defaults})
    return study


def distributions(space: Space) -> dict[str, Any]:
    """As Optuna wants them."""
    return {
        hp.name: optuna.distributions.FloatDistribution(hp.low, hp.high, log=True)
        for hp in space.hps.values()
    }


def _inside(params: Mapping[str, float], space: Space) -> dict[str, float]:
    """All HPs of a space, those that were not searched at 1, rounding kept inside the range."""
    return {hp.name: min(max(params.get(hp.name, hp.default), hp.low), hp.high) for hp in space.hps.values()}


def with_optuna(
    make: Callable[[int], optuna.samplers.BaseSampler], rows: Sequence[RunRow], seed: int
) -> dict[str, float]:
    """A sampler of Optuna's that knows all runs so far."""
    space = per_module()
    study = optuna.create_study(sampler=make(1000 * seed + len(rows)))
    for row in rows:
        study.add_trial(
            optuna.trial.create_trial(
                params=_inside(row["params"], space),
                distributions=distributions(space),
                value=min(row["loss"], FAILED),
            )
        )
    return space.suggest(study.ask())


def unit(params: Mapping[str, float]) -> np.ndarray[Any, Any]:
    """HPs in [0, 1], by logarithm."""
    inside = _inside(params, per_module())
    return np.array(
        [math.log(inside[hp.name] / hp.low) / math.log(hp.high / hp.low) for hp in per_module().hps.values()]
    )


def from_unit(x: np.ndarray[Any, Any]) -> dict[str, float]:
    """The inverse of `unit`."""
    return {
        hp.name: hp.low * (hp.high / hp.low) ** float(min(max(u, 0.0), 1.0))
        for hp, u in zip(per_module().hps.values(), x, strict=True)
    }


def random_region(rows: Sequence[RunRow], seed: int) -> dict[str, float]:
    """Trust-region random search around the best run so far, in octaves.

    Rounds of 5 draws, each of which moves a random third of the HPs by N(0, step²); after a round with a new
    best run the step grows by 1.5, otherwise it shrinks to .7 of it.
    """
    step, best = 0.5, min(row["loss"] for row in rows[:FIRST])
    own = [row["loss"] for row in rows[FIRST:]]
    for start in range(0, len(own) - len(own) % 5, 5):
        found = min(own[start : start + 5])
        step *= 1.5 if found < best else 0.7
        best = min(best, found)
    centre = min(rows, key=lambda row: row["loss"])["params"]
    rng = np.random.default_rng([seed, len(rows)])
    octaves = rng.normal(size=len(per_module().hps)) * step * (rng.random(len(per_module().hps)) < 1 / 3)
    moved = {
        name: value * 2.0**z
        for (name, value), z in zip(_inside(centre, per_module()).items(), octaves, strict=True)
    }
    return _inside(moved, per_module())


def cma_es(rows: Sequence[RunRow], seed: int) -> dict[str, float]:
    """Separable CMA-ES from the best global setting, replayed from its start."""
    from cmaes import SepCMA

    d = len(per_module().hps)
    best = min(rows[:FIRST], key=lambda row: row["loss"])["params"]
    optimizer = SepCMA(mean=unit(best), sigma=0.1, bounds=np.array([[0.0, 1.0]] * d), seed=seed)
    finished = list(rows[FIRST:])
    while True:
        asked = [optimizer.ask() for _ in range(optimizer.population_size)]
        if len(finished) < len(asked):
            return from_unit(asked[len(finished)])
        losses = [min(row["loss"], FAILED) for row in finished[: len(asked)]]
        optimizer.tell(list(zip(asked, losses, strict=True)))
        finished = finished[len(asked) :]


def staged(rows: Sequence[RunRow], seed: int, arm: str = "staged") -> dict[str, float]:
    """Staged search with the package's sampler, over the HPs of an arm."""
    share = None if arm == "global" else FIRST / (FIRST + THEN)
    return transfer_sampler(per_module(arm), rows, seed, global_share=share)


ARMS: dict[str, Callable[[Sequence[RunRow], int], dict[str, float]]] = {
    "staged": staged,
    "random": random_region,
    **{arm: functools.partial(staged, arm=arm) for arm in PARTS},
    "tpe": lambda rows, seed: with_optuna(
        lambda s: optuna.samplers.TPESampler(seed=s, multivariate=True, n_startup_trials=FIRST), rows, seed
    ),
    "gp": lambda rows, seed: with_optuna(
        lambda s: optuna.samplers.GPSampler(seed=s, n_startup_trials=FIRST), rows, seed
    ),
    "cma": cma_es,
}


def fit(arm: str, rows: Sequence[RunRow], seed: int) -> Any:
    """The package's surrogate of the runs of a search, over the HPs of its arm."""
    from transfer_bo.surrogate.surrogate import fit_surrogate

    study = transfer_study(per_module(arm), rows, seed)
    study.ask()  # the sampler keeps its settings with the study
    settings = read_settings(study)
    dimensions = read_dimensions([t.distributions for t in study.trials], settings.defaults)
    return fit_surrogate(read_runs(study), dimensions, settings)


def suggestion(arm: str, rows: Sequence[RunRow], seed: int) -> dict[str, float]:
    """What `transfer-bo suggest` would answer at the proxy: the least expected loss, wherever it lies."""
    import torch

    from transfer_bo.surrogate.expected_loss import linearised_expected_loss, minimize_expected_loss

    surrogate = fit(arm, rows, seed)
    generator = torch.Generator().manual_seed(seed)
    v, flags = minimize_expected_loss(linearised_expected_loss(surrogate, BASE, generator), generator)
    return dict(surrogate.coordinates.params(v, flags))


def pick(arm: str, rows: Sequence[RunRow], seed: int) -> dict[str, float]:
    """What an arm would set: its best run; for the surrogate's arms the run of the least posterior mean."""
    if arm != "staged" and arm not in PARTS:
        return dict(min(rows, key=lambda row: row["loss"])["params"])
    surrogate = fit(arm, rows, seed)
    finished = [run for run in surrogate.runs if run.outcome is Outcome.FINISHED]
    import torch

    with torch.no_grad():
        rows = torch.stack([surrogate.row(run) for run in finished])
        mean, _ = surrogate.optimum_posterior(BASE).values(rows)
    return dict(finished[int(mean.argmin())].params)


def one_arm(rows: Rows, arm: str, seed: int, count: int, until: float) -> None:
    """The search of an arm up to so many runs of its own, and the replicas of what it would pick then."""
    first = rows.of("search", "first", seed)
    while len(first) < FIRST:
        params = transfer_sampler(GLOBAL, first, seed)
        rows.make("search", "first", seed, len(first), params, BASE, run_seed(seed, len(first)))
        first = rows.of("search", "first", seed)
        _check(until)
    own = rows.of("search", arm, seed)
    while len(own) < count:
        params, number = ARMS[arm]([*first, *own], seed), FIRST + len(own)
        rows.make("search", arm, seed, number, params, BASE, run_seed(seed, number))
        own = rows.of("search", arm, seed)
        _check(until)
    named = f"{arm}@{count}" if count else "first"
    made = rows.of("replica", named, seed)
    if len(made) < REPLICAS:
        picked = made[0]["params"] if made else pick(arm if count else "global", [*first, *own[:count]], seed)
        for replica in range(REPLICAS):
            rows.make("replica", named, seed, replica, picked, BASE, fresh_seed(seed, replica))
            _check(until)


def _check(until: float) -> None:
    if time.time() > until:
        raise SystemExit("The time is up; the same command goes on from here.")


def main() -> None:
    """All arms of all seeds, the most telling first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--counts", type=int, nargs="+", default=list(CHECKPOINTS), help="when to pick")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after so long")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    until = time.time() + 3600 * given.hours
    rows = Rows("search.csv")
    for seed in given.seeds:
        for count in (0, *given.counts):
            for arm in given.arms:
                one_arm(rows, arm, seed, count, until)


if __name__ == "__main__":
    main()
