"""The Optuna adapter: `TransferSampler` proposes rung and HPs jointly; the maths is in `surrogate`."""

from __future__ import annotations

import contextlib
import json
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import (
    FIXED_PARAMS_ATTR,
    FORMAT_ATTR,
    FORMAT_VERSION,
    OUTCOME_ATTR,
    RUNG,
    SCALE_ATTR,
    SETTINGS_ATTR,
    SOURCE_ATTR,
)
from transfer_bo.dimension import Dimension
from transfer_bo.errors import TransferError
from transfer_bo.records import (
    Outcome,
    Run,
    StudySettings,
    check_drift_prior,
    measured_seconds,
    read_dimensions,
    read_run,
    spent,
)
from transfer_bo.scale import Ladder, Scale, default_cost
from transfer_bo.search.exclusions import drop_always_failing, matches_failed_run, working_choices
from transfer_bo.space import is_multiplier

__all__ = ["TransferSampler"]

JUDGE_EVERY = 20
"""After so many trials it is judged anew which HPs are nil."""
TRIES, ANOTHER = 32, 1009
"""In place of a point that failed before so many start-up points are tried, so many numbers apart."""
UNMEASURED = 64
"""With a budget in seconds the cheapest run is taken for so small a part of it until one has finished."""
DriftPrior = Mapping[str, Mapping[str, tuple[float, float]]]


class _Space(dict[str, BaseDistribution]):
    """A search space, and the trials it was read from: one look at the study for each proposal."""

    def __init__(self, space: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]) -> None:
        super().__init__(space)
        self.trials = trials


class TransferSampler(optuna.samplers.BaseSampler):
    """Searches on proxies for the optimum at a target that is never run.

    In the objective, `ladder.suggest(trial)` returns the rung and `trial.suggest_*` the HPs; both are
    proposed together, so that a run teaches most about the optimum at the target per unit of cost. The
    sampler keeps what it knows with the study, so that `transfer_bo.suggest(study)` needs the study alone.

    Under `transfer_bo.objective` a point that failed is not proposed again, and rungs and choices that ran
    out of memory or raised an error four times, and never worked, are given up.

    Without a ladder there is nothing to transfer: the sampler hands over to `optuna.samplers.GPSampler`.

    Args:
        ladder: the rungs; the target is registered in it.
        target: the scale whose optimum is wanted.
        cost: cost of one run at a scale, any unit; by default training FLOPs up to a constant. "seconds" for
            the seconds that finished runs took under `transfer_bo.objective`, told from FLOPs where none has.
        budget: tuning compute in the unit of `cost`. When no rung is affordable any more, `study.optimize`
            stops, and trials that other threads had begun by then are pruned; in ask/tell the cheapest rung
            is proposed and `exhausted` is true.
        coordinates: "base" if HPs are in base coordinates of a parametrization that claims transfer (the
            prior of the drift is 0), "raw" if not (its prior comes from the literature).
        drift_prior: own prior of the drift, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        defaults: prior guess of the optimum, `{hp: value}`; by default the middle of each range.
        n_startup_trials: runs before the surrogate is used, spread by a low-discrepancy sequence over the
            cheaper rungs; by default one more than there are HPs, at least 4 and at most 12.
        global_share: search in two stages. For this share of the budget HPs named `kind.group`, which
            multiply `kind` for some tensors, stay at their defaults; then all HPs are searched, in a trust
            region around the best setting, at the cheapest rung. For 20 multipliers or more.
        seed: the same seed gives the same proposals for the same history.

    Raises:
        TransferError: for a ladder without a target, coordinates of another name, a cost that is not
            positive, no rung that is cheaper than the target, a budget that buys no run, or a seed or drift
            prior that is none.
    """

    def __init__(
        self,
        *,
        ladder: Ladder | None = None,
        target: Scale | None = None,
        cost: Callable[[Scale], float] | Literal["seconds"] | None = None,
        budget: float | None = None,
        coordinates: str = "base",
        drift_prior: DriftPrior | None = None,
        defaults: Mapping[str, Any] | None = None,
        n_startup_trials: int | None = None,
        global_share: float | None = None,
        seed: int | None = None,
    ) -> None:
        if (ladder is None) != (target is None):
            raise TransferError(
                "TransferSampler needs both a ladder and a target, or neither; give the other."
            )
        if isinstance(cost, str) and cost != "seconds":
            raise TransferError(f'cost is {cost!r}; give a function of a scale, or "seconds".')
        if coordinates not in ("base", "raw"):
            raise TransferError(f'coordinates is {coordinates!r}; set it to "base" or "raw".')
        if budget is not None and not 0 < budget < np.inf:
            raise TransferError(f"budget is {budget!r}; set it to a positive number, or None for no limit.")
        if seed is not None and seed < 0:
            raise TransferError(f"seed is {seed!r}; set it to a whole number from 0 on, or None.")
        if global_share is not None and not (0 <= global_share < 1 and budget is not None):
            raise TransferError(
                f"global_share is {global_share!r} and budget {budget!r}; give a share from 0 to below 1, "
                "and a budget."
            )
        self._global_share = global_share
        self._found_nil: dict[int, frozenset[str]] = {}
        self._seed = int(np.random.SeedSequence().entropy % 2**31) if seed is None else seed  # type: ignore[operator]
        self._any_seed = seed is None
        self._ladder, self._target, self._budget = ladder, target, budget
        self._in_seconds = cost == "seconds"
        self._cost = cost if callable(cost) else default_cost
        self._coordinates, self._drift_prior = coordinates, dict(drift_prior or {})
        self._defaults = dict(defaults or {})
        self._n_startup_trials = n_startup_trials
        self._lock = threading.RLock()
        self._proposed: dict[int, Run] = {}  # by trial number
        self.exhausted = False
        startup = 10 if n_startup_trials is None else n_startup_trials
        self._plain = (
            optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup) if ladder is None else None
        )
        if ladder is not None and target is not None:
            ladder.register(target)
            check_drift_prior(self._drift_prior, target)
            cheapest = min(ladder.proxies, key=self._price)
            if self._price(cheapest) >= self._price(target):
                raise TransferError(
                    f"No rung is cheaper than the target {target} (the cheapest, {cheapest}, costs as much); "
                    "add a smaller rung."
                )
            if budget is not None and not self._in_seconds and budget < self._price(cheapest):
                raise TransferError(
                    f"budget is {budget:g} and buys no run, for the cheapest costs "
                    f"{self._price(cheapest):g}; give it in the unit of cost (n target runs are n times "
                    f"{self._price(target):g})."
                )

    @property
    def ladder(self) -> Ladder | None:
        """The rungs; None for a plain sampler."""
        return self._ladder

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock."""
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        self.__dict__.update(state, _lock=threading.RLock())

    def reseed_rng(self) -> None:
        """Nothing to do with a ladder: (seed, trial number) decide, so workers never repeat a draw."""
        if self._plain is not None:
            self._plain.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Take over the study's rung indices and leave the settings with the study."""
        self._raise_error_if_multi_objective(study)
        if self._plain is not None:
            self._plain.before_trial(study, trial)
            return
        with self._lock:
            self._share_settings(study, study.get_trials(deepcopy=False))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The union of all trials' HPs, whatever their state, and the rung."""
        if self._plain is not None:
            return self._plain.infer_relative_search_space(study, trial)
        space: dict[str, BaseDistribution] = {}
        trials = study.get_trials(deepcopy=False)
        for other in trials:
            space.update((n, dist) for n, dist in other.distributions.items() if not dist.single())
        if not space:
            return {}
        assert self._ladder is not None
        space.pop(RUNG, None)
        rung = IntDistribution(0, len(self._ladder) - 1)
        return _Space({RUNG: rung, **dict(sorted(space.items()))}, trials)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Rung and HPs of the next run."""
        self._raise_error_if_multi_objective(study)
        if self._plain is not None:
            return self._plain.sample_relative(study, trial, search_space)
        if not search_space:
            return {}
        from transfer_bo.search import policy  # torch loads when the first proposal is made

        # Where another sampler stands between, as PartialFixedSampler, the space has lost its trials.
        kept = search_space.trials if isinstance(search_space, _Space) else None
        trials = study.get_trials(deepcopy=False) if kept is None else kept
        with self._lock:
            if max(self._proposed, default=0) >= len(trials):  # another thread's trial began since that look
                trials = study.get_trials(deepcopy=False)
            settings = self._share_settings(study, trials)
            runs = self._others(trials, trial)
            typed = {other.number for other in trials if OUTCOME_ATTR in other.user_attrs}
            told = [run for run in runs if run.number in typed and run.scale in settings.scales]
            seen = [other.distributions for other in trials]
            searched = read_dimensions([*seen, search_space], settings.defaults)
            dimensions = working_choices(searched, told)
            rung, params = policy.next_run(
                settings=settings,
                runs=runs,
                dimensions=dimensions,
                maximize=study.direction == optuna.study.StudyDirection.MAXIMIZE,
                rungs=self._rungs(study, trial, settings, runs, told),
                n_startup=self._n_startup_trials,
                number=trial.number,
                still=self._nil(runs, dimensions) if self._global_share is not None else (),
            )
            here = [run for run in told if run.scale == settings.scales[rung]]
            moved = [dim for dim in dimensions if self._global_share is None or not is_multiplier(dim.name)]
            for k in range(1, TRIES + 1):
                if not (moved and matches_failed_run(params, here, searched)):
                    break
                params = params | policy.startup_point(moved, settings, trial.number + k * ANOTHER)
            self._proposed[trial.number] = replace(
                read_run(trial), params=params, scale=settings.scales[rung], outcome=Outcome.RUNNING
            )
        proposal = {RUNG: rung, **params}
        return {name: _on_grid(proposal[name], search_space[name]) for name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """An HP the study has not seen before: a random draw that depends on seed, trial number and name."""
        self._raise_error_if_multi_objective(study)
        if self._plain is not None:
            return self._plain.sample_independent(study, trial, param_name, param_distribution)
        if param_name == RUNG:
            if not isinstance(param_distribution, IntDistribution):
                raise TransferError(f"HP {RUNG!r} has the name of the ladder's rung; rename it.")
            trials = study.get_trials(deepcopy=False)
            settings = self._share_settings(study, trials)
            affordable = self._affordable(settings, self._others(trials, trial))
            return min(affordable, key=lambda index: settings.costs[index])
        if self._global_share and is_multiplier(param_name):
            return self._defaults.get(
                param_name, 1.0
            )  # known from the second trial on, and at its default till then
        own = np.random.default_rng([self._seed, trial.number, zlib.crc32(param_name.encode())])
        return optuna.samplers.RandomSampler(seed=int(own.integers(2**31))).sample_independent(
            study, trial, param_name, param_distribution
        )

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stop the study when the budget is spent."""
        if self._plain is not None:
            self._plain.after_trial(study, trial, state, values)
            return
        with self._lock:
            trials = study.get_trials(deepcopy=False)
            settings = self._share_settings(study, trials)
            self._affordable(settings, [*self._others(trials, trial), read_run(trial, state)])
        if self.exhausted:
            with contextlib.suppress(RuntimeError):  # ask/tell has no loop to stop; `exhausted` says it
                study.stop()

    def _others(self, trials: Sequence[FrozenTrial], own: FrozenTrial) -> list[Run]:
        """All other runs; one whose rung the storage does not know yet is where this process sent it."""
        runs = [read_run(trial) for trial in trials if trial.number != own.number]
        return [
            self._proposed.get(run.number, run)
            if run.outcome is Outcome.RUNNING and run.scale is None
            else run
            for run in runs
        ]

    def _price(self, scale: Scale) -> float:
        cost = float(self._cost(scale))
        if not (np.isfinite(cost) and cost > 0):
            raise TransferError(f"cost({scale}) is {cost!r}; make it a positive finite number.")
        return cost

    def _costs(self, trials: Sequence[FrozenTrial]) -> tuple[float, ...]:
        """Of one run at each scale of the ladder."""
        assert self._ladder is not None
        prices = tuple(map(self._price, self._ladder))
        if not self._in_seconds:
            return prices
        seconds = measured_seconds(self._ladder, map(read_run, trials), self._price)
        if seconds is None and self._budget is not None:  # nothing is known of seconds: a run is a small part
            return tuple(price * self._budget / (UNMEASURED * min(prices)) for price in prices)
        return seconds or prices

    def _nil(self, runs: Sequence[Run], dimensions: Sequence[Dimension]) -> frozenset[str]:
        """HPs that the runs show to be nil; judged every `JUDGE_EVERY` trials, for it takes seconds."""
        until = max((run.number for run in runs), default=0) // JUDGE_EVERY * JUDGE_EVERY
        if until not in self._found_nil:
            from transfer_bo.diagnostics.importance import unimportant_hps

            judged = [run for run in runs if run.number < until and run.purpose == "search"]
            self._found_nil[until] = frozenset(unimportant_hps(judged, dimensions, self._seed))
        return self._found_nil[until]

    def _rungs(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        settings: StudySettings,
        runs: Sequence[Run],
        told: Sequence[Run],
    ) -> list[int]:
        """Rungs that the trial may use: the one it was enqueued with, or those that are affordable and work.

        Args:
            study: ended if nothing is affordable, unless the trial was asked for.
            trial: the one that is proposed for.
            settings: of the study.
            runs: all others.
            told: those of them with typed outcomes, at scales of the ladder.
        """
        asked: dict[str, Any] | None = trial.system_attrs.get(FIXED_PARAMS_ATTR)
        if asked is not None and asked.get(RUNG) in range(len(settings.scales)):
            return [int(asked[RUNG])]
        # A number that is no rung goes on from here, for the ladder to refuse.
        rungs = self._affordable(settings, runs)
        if self.exhausted and asked is None:
            _end(study)
        return drop_always_failing(rungs, lambda run: run.scale and settings.scales.index(run.scale), told)

    def _affordable(self, settings: StudySettings, runs: Sequence[Run]) -> list[int]:
        """Rungs whose cost fits into what is left; the cheapest one, and `exhausted`, if none does."""
        if settings.budget is None:
            return list(settings.proxies)
        left = settings.budget - spent(settings, runs)
        rungs = [index for index in settings.proxies if settings.costs[index] <= left * (1 + 1e-9)]
        self.exhausted = not rungs
        return rungs or [min(settings.proxies, key=lambda index: settings.costs[index])]

    def _share_settings(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> StudySettings:
        """Bring ladder and study to the same rung indices; write the settings if they changed."""
        assert self._ladder is not None
        assert self._target is not None
        stored = study.user_attrs.get(SETTINGS_ATTR)
        if stored is not None:
            self._ladder.align(StudySettings.from_json(stored).scales)
            if self._any_seed:  # workers without a seed of their own share the study's
                self._seed = stored["seed"]
        for trial in trials:
            # Two processes that grow the ladder at once overwrite each other's settings; the trials remember.
            # A past run's scale is no rung: nobody need be able to run there, or to say what it costs.
            if SCALE_ATTR in trial.user_attrs and SOURCE_ATTR not in trial.user_attrs:
                self._ladder.register(Scale(trial.user_attrs[SCALE_ATTR]))
        settings = StudySettings(
            scales=tuple(self._ladder),
            proxies=tuple(self._ladder.index(scale) for scale in self._ladder.proxies),
            target=self._target,
            costs=self._costs(trials),
            coordinates=self._coordinates,
            drift_prior=self._drift_prior,
            defaults=self._defaults,
            budget=self._budget,
            seed=self._seed,
            global_share=self._global_share,
        )
        # Keys of a later release are kept. The round trip gives what comes back: JSON knows no tuples.
        plain = {**(stored or {}), **json.loads(json.dumps(settings.to_json()))}
        if stored != plain:
            study.set_user_attr(SETTINGS_ATTR, plain)
            if study.user_attrs.get(FORMAT_ATTR, 0) < FORMAT_VERSION:
                study.set_user_attr(FORMAT_ATTR, FORMAT_VERSION)
        return settings


def _end(study: optuna.Study) -> None:
    """End `study.optimize` without another run; ask/tell has no loop to stop, `exhausted` says it there.

    Raises:
        optuna.TrialPruned: in `study.optimize`: the trial that was to run has no place in the budget.
    """
    try:
        study.stop()
    except RuntimeError:
        return
    raise optuna.TrialPruned("The budget is spent.")


def _on_grid(value: Any, distribution: BaseDistribution) -> Any:
    """A proposed value moved onto what the distribution contains."""
    if isinstance(distribution, CategoricalDistribution):
        return value
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    value = min(max(value, low), high)
    if step is not None:
        value = min(low + round((value - low) / step) * step, high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)
