"""The Optuna adapter: Optuna's own conformance suite, and what a ladder adds."""

import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

import transfer_bo as tb
from transfer_bo.attributes import RUNG, SCALE_ATTR, SECONDS_ATTR
from transfer_bo.errors import BudgetError, PriorError, ScaleError, SearchSpaceError
from transfer_bo.records import read_runs, read_settings
from transfer_bo.scale import default_cost

RUNGS = [tb.Scale(width=32, tokens=1e5), tb.Scale(width=64, tokens=1e5), tb.Scale(width=64, tokens=4e5)]
TARGET = tb.Scale(width=256, tokens=1e6)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Optuna warns about experimental parts and out-of-range values; that is not what is tested here."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TestWithLadder(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Optuna's conformance suite for a sampler with a ladder that the objective never asks for."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        """A fresh sampler."""
        return lambda: tb.TransferSampler(ladder=tb.Ladder(RUNGS), target=TARGET, seed=0, n_startup_trials=2)


class TestWithoutLadder(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Optuna's conformance suite for the sampler that hands over to GPSampler."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        """A fresh sampler."""
        return lambda: tb.TransferSampler(seed=0, n_startup_trials=0)


def loss_at(scale: tb.Scale, lr: float, decay: float) -> float:
    """An analytic loss: a law in width and tokens, a bowl in lr and decay at lr = 2^-6, decay = 0.1."""
    law = 1 + (scale.width / 32) ** -0.5 + 0.5 * (scale.tokens / 1e5) ** -0.4
    z = math.log2(lr) + 6
    return law * math.exp(0.02 * z**2 + 0.003 * math.log2(lr * decay / (2**-6 * 0.1)) ** 2)


def make(
    ladder: tb.Ladder | None = None, *, direction: str = "minimize", **options: object
) -> tuple[optuna.Study, Callable[[optuna.Trial], float]]:
    """A study with a ladder, and its objective."""
    ladder = ladder or tb.Ladder(RUNGS)
    sampler = tb.TransferSampler(ladder=ladder, target=TARGET, **{"seed": 0, **options})
    study = optuna.create_study(sampler=sampler, direction=direction)
    sign = 1 if direction == "minimize" else -1

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return sign * loss_at(scale, lr, trial.suggest_float("weight_decay", 1e-3, 1.0, log=True))

    return study, objective


def history(study: optuna.Study) -> list[dict]:
    """What was proposed."""
    return [trial.params for trial in study.get_trials()]


def test_same_seed_same_proposals() -> None:
    """Two studies with one seed see the same trials; another seed sees others."""
    studies = []
    for seed in (1, 1, 2):
        study, objective = make(seed=seed)
        study.optimize(objective, n_trials=7)
        studies.append(history(study))

    assert studies[0] == studies[1]
    assert studies[0] != studies[2]


def test_every_rung_is_looked_at_and_the_target_never() -> None:
    """The search visits each affordable rung, keeps its axes with the trial, and leaves the target alone."""
    study, objective = make()
    study.optimize(objective, n_trials=10)

    scales = [tb.Scale(trial.user_attrs[SCALE_ATTR]) for trial in study.trials]

    assert set(scales) == set(RUNGS)
    assert [RUNGS.index(scale) for scale in scales] == [trial.params[RUNG] for trial in study.trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_optimum_is_found_in_either_direction(direction: str) -> None:
    """After 18 proxy runs the suggested learning rate lies within half an octave of the best one."""
    study, objective = make(direction=direction)
    study.optimize(objective, n_trials=18)

    suggestion = tb.suggest(study)

    assert abs(math.log2(suggestion.params["lr"]) + 6) < 0.5


def test_budget_stops_the_study() -> None:
    """`optimize` ends when no rung is affordable, and no more than the budget was spent."""
    cost = tb.scale.default_cost
    budget = 12.5 * cost(RUNGS[0])
    study, objective = make(budget=budget, cost=cost)

    study.optimize(objective, n_trials=100)

    spent = sum(cost(run.scale) for run in read_runs(study) if run.scale)
    assert budget - cost(RUNGS[0]) < spent <= budget
    assert study.sampler.exhausted


def test_budget_in_ask_and_tell() -> None:
    """In ask/tell an exhausted budget shows as `exhausted`, and the cheapest rung is proposed."""
    cost = tb.scale.default_cost
    study, objective = make(budget=1.5 * cost(RUNGS[0]), cost=cost)
    for _ in range(3):
        trial = study.ask()
        study.tell(trial, objective(trial))

    assert study.sampler.exhausted
    assert study.trials[-1].params[RUNG] == 0


def test_a_budget_in_measured_seconds() -> None:
    """Where a run takes 1000 s whatever its size, 8500 s buy eight, and the study holds these costs."""
    study, objective = make(cost="seconds", budget=8500.0)

    @tb.objective
    def timed(trial: optuna.Trial) -> float:
        value = objective(trial)
        trial.set_user_attr(SECONDS_ATTR, 1000.0)
        return value

    study.optimize(timed, n_trials=30)

    ran = [run for run in read_runs(study) if run.scale]
    costs = read_settings(study).costs
    assert 8 == len(ran)
    assert study.sampler.exhausted
    assert all(1000 <= costs[RUNGS.index(run.scale)] < 1050 for run in ran)


def test_threads_share_a_budget() -> None:
    """With `n_jobs` no point is run twice, and trials that the budget has no room for are pruned, not run."""
    budget = 12.5 * default_cost(RUNGS[0])
    study, objective = make(budget=budget)

    study.optimize(objective, n_trials=60, n_jobs=4)

    ran = [run for run in read_runs(study) if run.scale]
    assert len(ran) == len({(run.scale, run.params["lr"]) for run in ran})
    assert sum(default_cost(run.scale) for run in ran) <= budget
    assert study.sampler.exhausted
    assert {run.outcome for run in read_runs(study) if not run.scale} <= {tb.Outcome.PRUNED}


def test_a_budget_that_buys_no_run_is_refused() -> None:
    """Half a target run, said as .5, is no FLOPs: refused before the first run, with the unit named."""
    with pytest.raises(BudgetError, match=r"0\.5"):
        make(budget=0.5)


def test_a_run_that_was_asked_for_needs_no_budget() -> None:
    """Where no rung is affordable any more, an enqueued trial still runs."""
    study, objective = make(budget=2.5 * default_cost(RUNGS[0]))
    study.optimize(objective, n_trials=60)
    study.enqueue_trial({"lr": 0.01})
    study.optimize(objective, n_trials=1)

    assert optuna.trial.TrialState.COMPLETE == study.trials[-1].state
    assert 0.01 == study.trials[-1].params["lr"]


@pytest.mark.parametrize("finished", [0, 8], ids=["start-up", "surrogate"])
def test_asked_at_once_they_differ(finished: int) -> None:
    """Eight trials that are asked for before any of them has ended are eight different runs."""
    study, objective = make()
    study.optimize(objective, n_trials=finished)
    trials = [study.ask() for _ in range(8)]
    for trial in trials:
        objective(trial)

    assert 8 == len({(t.params[RUNG], round(math.log2(t.params["lr"]), 2)) for t in trials})


def test_resuming_repeats_no_start_up_point() -> None:
    """A second process with the same seed goes on where the first one stopped, instead of anew."""
    study, objective = make()
    study.optimize(objective, n_trials=2)
    study.sampler = tb.TransferSampler(ladder=tb.Ladder(RUNGS), target=TARGET, seed=0)
    study.sampler.reseed_rng()
    study.optimize(objective, n_trials=2)

    assert 4 == len({trial.params["lr"] for trial in study.trials})


def test_an_unknown_rung_is_refused() -> None:
    """An enqueued rung outside the ladder, from the end too, and an HP of the rung's name say so."""
    for rung in (7, -1):
        study, objective = make()
        study.enqueue_trial({RUNG: rung})
        with pytest.raises(ScaleError, match=f"{rung} .* 0 to 3"):
            study.optimize(objective, n_trials=1)
    study, _ = make()
    with pytest.raises(SearchSpaceError, match=RUNG):
        study.optimize(lambda trial: trial.suggest_float(RUNG, 1.0, 2.0), n_trials=1)


def test_a_fixed_rung_conditions_the_proposal() -> None:
    """An enqueued rung is honoured, and the other HPs are proposed for it."""
    study, objective = make()
    study.optimize(objective, n_trials=6)
    study.enqueue_trial({RUNG: 2})
    study.enqueue_trial({"lr": 0.05})
    study.optimize(objective, n_trials=2)

    assert study.trials[-2].params[RUNG] == 2
    assert study.trials[-1].params["lr"] == 0.05


def test_pickled_sampler_goes_on_the_same() -> None:
    """A sampler that was pickled and restored proposes what the original would."""
    study, objective = make()
    study.optimize(objective, n_trials=6)
    copy = pickle.loads(pickle.dumps(study.sampler))
    original = study.ask()
    proposals = [
        sampler.sample_relative(
            study,
            study._storage.get_trial(original._trial_id),
            sampler.infer_relative_search_space(study, study._storage.get_trial(original._trial_id)),
        )
        for sampler in (study.sampler, copy)
    ]

    assert proposals[0].keys() == {RUNG, "lr", "weight_decay"}
    assert proposals[0][RUNG] == proposals[1][RUNG]
    assert proposals[0]["lr"] == pytest.approx(proposals[1]["lr"], rel=0.2)


def test_a_grown_ladder_keeps_its_indices() -> None:
    """A script that lists its rungs in another order, with one more, gets the stored indices."""
    study, objective = make()
    study.optimize(objective, n_trials=2)
    grown = tb.Ladder([tb.Scale(width=128, tokens=1e5), RUNGS[1], RUNGS[0]])
    study.sampler = tb.TransferSampler(ladder=grown, target=TARGET, seed=0)
    study.optimize(lambda trial: loss_at(grown.suggest(trial), 0.01, 0.1), n_trials=1)

    settings = read_settings(study)

    assert settings.scales == (*RUNGS, TARGET, tb.Scale(width=128, tokens=1e5))
    assert settings.proxies == (4, 1, 0)


def test_diverged_runs_teach_where_not_to_go() -> None:
    """With a cliff at lr = 2^-5, later proposals keep off its far side."""
    ladder = tb.Ladder(RUNGS)
    sampler = tb.TransferSampler(ladder=ladder, target=TARGET, seed=0)
    study = optuna.create_study(sampler=sampler)

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
        if lr > 2**-5:
            raise tb.Diverged("too steep")
        return loss_at(scale, lr, 0.1)

    study.optimize(objective, n_trials=24)
    diverged = [run.outcome is tb.Outcome.DIVERGED for run in read_runs(study)]

    assert any(diverged[:8])
    assert sum(diverged[12:]) <= 3
    assert tb.suggest(study).params["lr"] < 2**-5


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"ladder": tb.Ladder(RUNGS), "target": None}, ScaleError, "target"),
        ({"coordinates": "polar"}, tb.TransferError, "polar"),
        ({"budget": -1.0}, BudgetError, "-1.0"),
        ({"budget": math.inf}, BudgetError, "inf"),
        ({"seed": -1}, tb.TransferError, "-1"),
        ({"drift_prior": {"lr": {"widht": (0.0, 0.1)}}}, PriorError, "widht"),
        ({"drift_prior": {"lr": {"width": (-0.5, 0.0)}}}, PriorError, r"\(-0.5, 0.0\)"),
        ({"drift_prior": {"lr": {"width": -0.5}}}, PriorError, "-0.5"),
        ({"cost": lambda scale: 0.0}, BudgetError, "0.0"),
        ({"cost": lambda scale: 1.0}, ScaleError, "width=256"),
        ({"cost": "dollars"}, BudgetError, "dollars"),
    ],
)
def test_bad_settings_are_refused(options: dict, error: type[Exception], named: str) -> None:
    """Bad settings are refused at once, in one sentence with the value."""
    settings = {"ladder": tb.Ladder(RUNGS), "target": TARGET, **options}

    with pytest.raises(error, match=named):
        tb.TransferSampler(**settings)


def test_stages_are_kept_with_the_study_and_asked_for_well() -> None:
    """Multipliers stay at their defaults at first, known to the study or not; a bad share is refused."""
    ladder = tb.Ladder(RUNGS)
    cost = 3 * default_cost(RUNGS[0])
    sampler = tb.TransferSampler(
        ladder=ladder, target=TARGET, seed=0, budget=2 * cost, global_share=0.5, defaults={"lr.q": 2.0}
    )
    study = optuna.create_study(sampler=sampler)

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return loss_at(scale, lr * trial.suggest_float("lr.q", 1 / 8, 8, log=True), 0.1)

    study.optimize(objective, n_trials=2)

    assert [2.0, 2.0] == [trial.params["lr.q"] for trial in study.trials]
    assert 0.5 == read_settings(study).global_share
    for share, budget in ((1.0, 1.0), (-0.1, 1.0), (0.5, None)):
        with pytest.raises(BudgetError, match=f"global_share is {share}"):
            tb.TransferSampler(ladder=ladder, target=TARGET, global_share=share, budget=budget)


def test_a_multiplier_begins_at_its_default_inside_its_range() -> None:
    """Also where the range leaves out 1, and no share of the budget is given."""
    ladder = tb.Ladder(RUNGS)
    sampler = tb.TransferSampler(ladder=ladder, target=TARGET, seed=0, budget=10 * default_cost(RUNGS[0]))
    trial = optuna.create_study(sampler=sampler).ask()
    ladder.suggest(trial)

    assert 1.0 == trial.suggest_float("lr.q", 1 / 8, 8, log=True)
    assert 2.0 == trial.suggest_float("lr.up", 2, 8, log=True)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"ladder": RUNGS}, ScaleError), ({"budget": "4h"}, BudgetError), ({"budget": [1]}, BudgetError)],
)
def test_options_of_another_type(options: dict[str, Any], error: type[Exception]) -> None:
    """A list of scales has no `suggest`, a text is no budget."""
    with pytest.raises(error):
        tb.TransferSampler(**{"ladder": tb.Ladder(RUNGS), "target": TARGET, **options})
