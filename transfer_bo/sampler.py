"""The Optuna adapter: `TransferSampler` proposes rung and HPs jointly; `search` decides them.

The sampler translates. It reads an Optuna study into records, asks `search.policy` for the next run, moves
the answer onto Optuna's distributions, and keeps the settings with the study.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import warnings
import zlib
from collections.abc import Mapping, Sequence
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
from transfer_bo.errors import ScaleError, SearchSpaceError, TransferError
from transfer_bo.records import (
    Outcome,
    Run,
    StudySettings,
    read_dimensions,
    read_drift_prior,
    read_run,
)
from transfer_bo.scale import Cost, Ladder, Scale, as_scale, default_cost
from transfer_bo.search.budget import (
    CostModel,
    affordable_rungs,
    cheapest_rung,
    check_budget,
    check_costs,
)
from transfer_bo.search.exclusions import drop_failing_choices
from transfer_bo.search.pruner import compares_rungs
from transfer_bo.space import is_multiplier
from transfer_bo.store import optimizer_process
from transfer_bo.store.whole_study import whole_study

__all__ = ["TransferSampler"]

logger = logging.getLogger(__name__)

JUDGE_EVERY = 20
"""After so many trials it is judged again which HPs are unimportant."""

DriftOverrides = Mapping[str, Mapping[str, tuple[float, float]]]
"""`{hp: {axis: (mean, sd)}}`, octaves per doubling."""


class _SearchSpace(dict[str, BaseDistribution]):
    """A search space and the trials it was read from, so that a proposal reads the study once."""

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
        cost: cost of one run at a scale, any unit; by default training FLOPs up to a constant. With
            "seconds", the seconds that finished runs took under `transfer_bo.objective`, and estimates in
            proportion to FLOPs where none has finished.
        budget: compute for tuning in the unit of `cost`. When no rung is affordable any more,
            `study.optimize` stops, and trials that other threads had begun by then are pruned; in ask/tell
            the cheapest rung is proposed and `exhausted` is true.
        coordinates: "base" if HPs are in base coordinates of a parametrization that claims transfer (the
            prior of the drift is 0), "raw" if not (its prior comes from the literature).
        drift_prior: your own prior of the drift, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        defaults: prior guess of the optimum, `{hp: value}`; by default the middle of each range.
        n_startup_trials: runs before the surrogate is used, spread by a low-discrepancy sequence over the
            cheaper rungs; by default one more than there are HPs, at least 4 and at most 12.
        global_share: for 20 multipliers or more. With a budget, HPs named `kind.group`, which multiply `kind`
            for some tensors, stay at their defaults at first, by default for .3 of the budget. If this share
            is given, all HPs are then searched in a trust region around the best setting, at the cheapest
            rung, with up to a quarter of what this stage spends at larger rungs.
        trunk_decay: with a WSD schedule whose runs share their stable part if they differ in tokens only: the
            share of a run in which the learning rate falls. Such a run costs what remains of it.
        seed: the same seed gives the same proposals for the same history.

    Attributes:
        exhausted: whether the budget buys no further run at any rung.

    Raises:
        ScaleError: for a ladder without a target, or no rung that is cheaper than the target.
        BudgetError: for a budget that buys no run, a cost that is not positive, or an invalid `global_share`.
        PriorError: for an invalid drift prior.
        TransferError: for invalid coordinates or an invalid seed.
    """

    def __init__(
        self,
        *,
        ladder: Ladder | None = None,
        target: Scale | Mapping[str, float] | None = None,
        cost: Cost | Literal["seconds"] | None = None,
        budget: float | None = None,
        coordinates: str = "base",
        drift_prior: DriftOverrides | None = None,
        defaults: Mapping[str, Any] | None = None,
        n_startup_trials: int | None = None,
        global_share: float | None = None,
        trunk_decay: float | None = None,
        seed: int | None = None,
    ) -> None:
        if (ladder is None) != (target is None):
            raise ScaleError("TransferSampler needs both a ladder and a target, or neither; give the other.")
        if ladder is not None and not isinstance(ladder, Ladder):
            raise ScaleError(
                f"ladder is a {type(ladder).__name__}; give a Ladder, as in Ladder([Scale(...), ...])."
            )
        if coordinates not in ("base", "raw"):
            raise TransferError(f'coordinates is {coordinates!r}; set it to "base" or "raw".')
        if seed is not None and seed < 0:
            raise TransferError(f"seed is {seed!r}; set it to a whole number from 0 on, or None.")
        check_budget(cost, budget, global_share)

        self.exhausted = False
        self._ladder, self._budget = ladder, budget
        self._target: Scale | None = None
        self._costs = CostModel(cost if callable(cost) else default_cost, cost == "seconds", budget)
        self._coordinates = coordinates
        self._drift_prior: DriftOverrides = dict(drift_prior or {})
        self._defaults = dict(defaults or {})
        self._n_startup_trials, self._global_share = n_startup_trials, global_share
        self._trunk_decay = trunk_decay
        self._has_own_seed = seed is not None
        self._seed = int(np.random.SeedSequence().entropy % 2**31) if seed is None else seed  # type: ignore[operator]

        self._lock = threading.RLock()
        self._warned: set[str] = set()  # what has been warned of
        self._proposed: dict[int, Run] = {}  # by trial number
        self._unimportant: dict[int, frozenset[str]] = {}  # by the number of trials they were judged by
        self._plain: optuna.samplers.BaseSampler | None = None
        if ladder is None or target is None:
            startup = 10 if n_startup_trials is None else n_startup_trials
            self._plain = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        else:
            target = self._target = as_scale(target, "target")
            ladder.register(target)
            self._drift_prior = read_drift_prior(self._drift_prior, target)
            check_costs(ladder, target, self._costs)

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
        """Take over the study's rung indices and keep the settings with the study."""
        self._raise_error_if_multi_objective(study)
        if self._plain is not None:
            self._plain.before_trial(study, trial)
            return

        study = whole_study(study)
        with self._lock:
            optimizer_process.mark(study, trial)
            trials = study.get_trials(deepcopy=False)
            closed = optimizer_process.close_abandoned(study, trials)
            if closed:
                logger.warning("The process of the running trials %s is gone; they are closed.", closed)
                trials = study.get_trials(deepcopy=False)
            self._share_settings(study, trials)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The union of all trials' HPs, whatever their state, and the rung."""
        if self._plain is not None:
            return self._plain.infer_relative_search_space(study, trial)

        study = whole_study(study)
        space: dict[str, BaseDistribution] = {}
        trials = study.get_trials(deepcopy=False)
        for other in trials:
            space.update((name, dist) for name, dist in other.distributions.items() if not dist.single())
        if not space:
            return {}

        assert self._ladder is not None
        space.pop(RUNG, None)
        rung = IntDistribution(0, len(self._ladder) - 1)
        return _SearchSpace({RUNG: rung, **dict(sorted(space.items()))}, trials)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Rung and HPs of the next run."""
        self._raise_error_if_multi_objective(study)
        if self._plain is not None:
            return self._plain.sample_relative(study, trial, search_space)
        if not search_space:
            return {}

        with self._lock:
            rung, params = self._propose(whole_study(study), trial, search_space)
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

        study = whole_study(study)
        if param_name == RUNG:
            return self._first_rung(study, trial, param_distribution)
        is_held = self._budget is not None and is_multiplier(param_name)
        if is_held and isinstance(param_distribution, FloatDistribution):
            # Known to the search from the second trial on; at its default until then.
            default = self._defaults.get(param_name, 1.0)
            return min(max(default, param_distribution.low), param_distribution.high)

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
        """Stop the study when the budget is exhausted."""
        if self._plain is not None:
            self._plain.after_trial(study, trial, state, values)
            return

        study = whole_study(study)
        with self._lock:
            self._warn_of_mistakes(study, trial, state)
            trials = study.get_trials(deepcopy=False)
            settings = self._share_settings(study, trials)
            others = self._other_runs(trials, trial)
            self.exhausted = not affordable_rungs(settings, [*others, read_run(trial, state)])
        if self.exhausted:
            self._warn_of_held_budget(study, settings, others)
            with contextlib.suppress(RuntimeError):  # ask/tell has no loop to stop; `exhausted` says it
                study.stop()

    def _propose(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> tuple[int, dict[str, Any]]:
        """Rung index and HPs of the next run."""
        from transfer_bo.search import policy  # torch loads when the first proposal is made
        from transfer_bo.search.state import SearchState

        trials = self._read_trials(study, search_space)
        settings = self._share_settings(study, trials)
        state = SearchState(
            settings=settings,
            runs=self._other_runs(trials, trial),
            dimensions=read_dimensions(
                [*(other.distributions for other in trials), search_space], settings.defaults
            ),
            maximize=study.direction == optuna.study.StudyDirection.MAXIMIZE,
            number=trial.number,
            n_startup=self._n_startup_trials,
            stored_outcomes={other.number for other in trials if OUTCOME_ATTR in other.user_attrs},
        )
        state = replace(state, dimensions=drop_failing_choices(state.dimensions, state.with_stored_outcome))
        if self._global_share is not None:
            state = replace(state, frozen=self._unimportant_hps(state.runs, state.dimensions))

        rungs = self._enqueued_rung(trial, settings)
        if not rungs:
            self.exhausted = not affordable_rungs(settings, state.runs)
            if self.exhausted and FIXED_PARAMS_ATTR not in trial.system_attrs:
                self._warn_of_held_budget(study, settings, state.runs)
                _end(study)
            rungs = policy.usable_rungs(state)

        rung, params = policy.propose(state, rungs)
        self._proposed[trial.number] = replace(
            read_run(trial), params=params, scale=settings.scales[rung], outcome=Outcome.RUNNING
        )
        return rung, params

    def _read_trials(
        self, study: optuna.Study, search_space: Mapping[str, BaseDistribution]
    ) -> Sequence[FrozenTrial]:
        """The study's trials: those that the search space was read from, if no other has begun since."""
        # Where another sampler stands between, as PartialFixedSampler, the space has lost its trials.
        if isinstance(search_space, _SearchSpace):
            trials = search_space.trials
            if max(self._proposed, default=0) < len(trials):
                return trials
        return study.get_trials(deepcopy=False)

    def _other_runs(self, trials: Sequence[FrozenTrial], own: FrozenTrial) -> list[Run]:
        """All other runs; one whose rung the storage does not know yet is where this process sent it."""
        runs = [read_run(trial) for trial in trials if trial.number != own.number]
        return [
            self._proposed.get(run.number, run)
            if run.outcome is Outcome.RUNNING and run.scale is None
            else run
            for run in runs
        ]

    def _enqueued_rung(self, trial: FrozenTrial, settings: StudySettings) -> list[int]:
        """The rung that the trial was enqueued with; empty without one, or with a number that is no rung.

        Such a number is refused by the ladder when the objective asks it for the rung.
        """
        rung: Any = (trial.system_attrs.get(FIXED_PARAMS_ATTR) or {}).get(RUNG)
        return [int(rung)] if rung in range(len(settings.scales)) else []

    def _first_rung(self, study: optuna.Study, trial: FrozenTrial, distribution: BaseDistribution) -> int:
        """The rung of a trial of which nothing else is known: the cheapest affordable one."""
        if not isinstance(distribution, IntDistribution):
            raise SearchSpaceError(f"HP {RUNG!r} has the name of the ladder's rung; rename it.")

        trials = study.get_trials(deepcopy=False)
        settings = self._share_settings(study, trials)
        affordable = affordable_rungs(settings, self._other_runs(trials, trial))
        self.exhausted = not affordable
        return cheapest_rung(settings, affordable or settings.proxies)

    def _unimportant_hps(self, runs: Sequence[Run], dimensions: Sequence[Dimension]) -> frozenset[str]:
        """HPs that the runs show to be unimportant; judged every `JUDGE_EVERY` trials: it takes seconds."""
        until = max((run.number for run in runs), default=0) // JUDGE_EVERY * JUDGE_EVERY
        if until not in self._unimportant:
            from transfer_bo.diagnostics.importance import unimportant_hps

            judged = [run for run in runs if run.number < until and run.purpose == "search"]
            self._unimportant[until] = frozenset(unimportant_hps(judged, dimensions, self._seed))
        return self._unimportant[until]

    def _warn_once(self, subject: str, sentence: str) -> None:
        """Warn, unless this sampler has warned of the subject before."""
        if subject not in self._warned:
            self._warned.add(subject)
            warnings.warn(sentence, stacklevel=2)

    def _warn_of_mistakes(self, study: optuna.Study, trial: FrozenTrial, state: TrialState) -> None:
        """Warn, as soon as a trial shows it, of what makes a search with a ladder useless."""
        assert self._ladder is not None
        if state is TrialState.COMPLETE and SCALE_ATTR not in trial.user_attrs:
            self._warn_once(
                "scale",
                f"Trial {trial.number} finished without a scale, because its objective did not call "
                "ladder.suggest(trial); such trials are not part of the fit.",
            )
        if trial.intermediate_values and len(self._ladder.proxies) > 1 and compares_rungs(study.pruner):
            name = type(study.pruner).__name__
            self._warn_once(
                "pruner",
                f"The study's pruner, {name}, compares trials of all rungs and so prunes those of the small "
                "ones; create the study with pruner=transfer_bo.RungPruner(), or optuna.pruners.NopPruner().",
            )

    def _warn_of_held_budget(self, study: optuna.Study, settings: StudySettings, runs: Sequence[Run]) -> None:
        """Warn if `study.optimize` ends although running trials, whose process may be gone, hold budget."""
        if not optimizer_process.is_in_optimize(study):
            return
        trials = study.get_trials(deepcopy=False)
        unknown = optimizer_process.of_unknown_process(study, trials)
        held = [run for run in runs if run.number in unknown]
        if held and affordable_rungs(settings, [run for run in runs if run not in held]):
            numbers = ", ".join(str(run.number) for run in held)
            self._warn_once(
                "held",
                f"The budget is exhausted because trial(s) {numbers} are RUNNING and hold their share of it; "
                "if their processes have ended, close each with study.tell(number, "
                "state=optuna.trial.TrialState.FAIL).",
            )

    def _share_settings(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> StudySettings:
        """Bring ladder and study to the same rung indices; write the settings if they changed."""
        assert self._ladder is not None
        assert self._target is not None
        stored = study.user_attrs.get(SETTINGS_ATTR)
        if stored is not None:
            self._ladder.align(StudySettings.from_json(stored).scales)
            if not self._has_own_seed:  # workers without a seed of their own share the study's
                self._seed = stored["seed"]

        for trial in trials:
            # Two processes that grow the ladder at once overwrite each other's settings; the trials remember.
            # The scale of a source study's run is no rung: nobody need be able to run there or know its cost.
            if SCALE_ATTR in trial.user_attrs and SOURCE_ATTR not in trial.user_attrs:
                self._ladder.register(Scale(trial.user_attrs[SCALE_ATTR]))

        settings = StudySettings(
            scales=tuple(self._ladder),
            proxies=tuple(self._ladder.index(scale) for scale in self._ladder.proxies),
            target=self._target,
            costs=self._costs.prices(self._ladder, map(read_run, trials)),
            coordinates=self._coordinates,
            drift_prior=self._drift_prior,
            defaults=self._defaults,
            budget=self._budget,
            seed=self._seed,
            global_share=self._global_share,
            trunk_decay=self._trunk_decay,
        )
        _store_settings(study, settings, stored or {})
        return settings


def _store_settings(study: optuna.Study, settings: StudySettings, stored: Mapping[str, Any]) -> None:
    """Keep the settings with the study, and what a later release stored among them."""
    plain = json.loads(json.dumps(settings.to_json()))  # what comes back: JSON knows no tuples
    if stored == {**stored, **plain}:
        return

    study.set_user_attr(SETTINGS_ATTR, {**stored, **plain})
    if study.user_attrs.get(FORMAT_ATTR, 0) < FORMAT_VERSION:
        study.set_user_attr(FORMAT_ATTR, FORMAT_VERSION)


def _end(study: optuna.Study) -> None:
    """End `study.optimize` without another run; ask/tell has no loop to stop, `exhausted` says it there.

    Raises:
        optuna.TrialPruned: in `study.optimize`: the trial that was to run has no place in the budget.
    """
    try:
        study.stop()
    except RuntimeError:
        return
    raise optuna.TrialPruned("The budget is exhausted.")


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
