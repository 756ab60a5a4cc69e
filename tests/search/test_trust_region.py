"""The trust region of the second stage: its rule by hand, its proposals inside it, its two stages."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.search import trust_region
from transfer_bo.search.policy import choose_run
from transfer_bo.search.state import SearchState
from transfer_bo.search.trust_region import (
    INITIAL_SIDE,
    MAX_SIDE,
    TrustRegion,
    next_rung,
    propose_at_larger_rung,
    propose_inside,
    trust_region_side,
)
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.surrogate import fit_surrogate

BASE, LARGER, TARGET = (Scale(width=width, tokens=1e5) for width in (32, 64, 128))
DIMENSIONS = [
    Dimension("eps.q", "log", 1 / 8, 8.0, 1.0),
    Dimension("lr", "log", 2**-10, 2**-2, 2**-6),
    Dimension("lr.q", "log", 1 / 8, 8.0, 1.0),
    Dimension("lr.up", "log", 1 / 8, 8.0, 1.0),
]
DEFAULTS = {dim.name: dim.default for dim in DIMENSIONS}
BEST = {"lr": -5.0, "lr.q": 1.5, "lr.up": -1.0, "eps.q": 0.0}


def settings(share: float | None = 0.5) -> StudySettings:
    """One rung, a budget of 12 runs."""
    return StudySettings(
        (BASE, TARGET), (0,), TARGET, (1.0, 16.0), defaults=DEFAULTS, budget=12, global_share=share
    )


def loss(params: dict[str, float]) -> float:
    """A bowl in octaves about `BEST`, where a multiplier acts together with its kind."""
    z = {name: math.log2(params.get(name, 1.0)) - at for name, at in BEST.items()}
    q, up = z["lr"] + z["lr.q"], z["lr"] + z["lr.up"]
    return 2.0 * math.exp(0.02 * z["lr"] ** 2 + 0.02 * q**2 + 0.02 * up**2)


def search(count: int, plan: StudySettings) -> list[Run]:
    """The runs that `choose_run` proposes."""
    runs: list[Run] = []
    for number in range(count):
        _, params = choose_run(SearchState(plan, runs, DIMENSIONS, False, number, n_startup=4), [0])
        runs.append(Run(number, params, BASE, Outcome.FINISHED, loss(params)))
    return runs


@pytest.fixture(scope="module")
def staged() -> list[Run]:
    """Six global runs and four in the region."""
    return search(10, settings())


def test_the_side_by_hand() -> None:
    """Doubled after three successes in a row, halved after as many failures as there are HPs, at least 4."""
    better = [1.9, 1.8, 1.7]

    assert INITIAL_SIDE == trust_region_side([], 2.0, 4)
    assert INITIAL_SIDE == trust_region_side([*better[:2], 1.9], 2.0, 4)
    assert 2 * INITIAL_SIDE == trust_region_side(better, 2.0, 4)
    assert MAX_SIDE == trust_region_side([1.9 - 0.01 * i for i in range(9)], 2.0, 4)
    assert INITIAL_SIDE / 2 == trust_region_side([2.0, None, 1.999, 2.1], 2.0, 4)
    assert INITIAL_SIDE == trust_region_side([2.0] * 9, 2.0, 40)
    assert INITIAL_SIDE / 2 == trust_region_side([2.0] * 10, 2.0, 40)
    assert INITIAL_SIDE == trust_region_side(
        [2.0] * 4 * 7, 2.0, 4
    )  # six halvings to 2^-7, the seventh begins anew


@given(st.lists(st.one_of(st.none(), st.floats(0.1, 10.0)), max_size=60), st.integers(1, 100))
def test_the_side_is_the_same_for_larger_is_better(losses: list[float | None], d: int) -> None:
    """Turning the sign of the metric changes nothing, and the side stays within its limits."""
    turned = [None if loss is None else -loss for loss in losses]
    side = trust_region_side(losses, 2.0, d)

    assert side == trust_region_side(turned, -2.0, d, maximize=True)
    assert trust_region.MIN_SIDE <= side <= MAX_SIDE


def test_global_hps_come_first_then_multipliers_near_the_best(staged: list[Run]) -> None:
    """For half of the budget multipliers stay at 1; then they move, within the region around the best run."""
    first, then = staged[:6], staged[6:]

    assert {1.0} == {value for run in first for name, value in run.params.items() if "." in name}
    assert len({run.params["lr"] for run in first}) > 3
    assert all(any(run.params[name] != 1.0 for name in BEST if "." in name) for run in then)


def test_the_learning_rate_comes_first_for_few_multipliers_too() -> None:
    """For three tenths of the budget of 12 runs, even where no share is given; then all multipliers move."""
    runs = search(8, settings(share=None))
    multipliers = [name for name in BEST if "." in name]

    assert {1.0} == {run.params[name] for run in runs[:4] for name in multipliers}
    assert len({run.params["lr"] for run in runs[:4]}) == 4
    assert all(run.params[name] != 1.0 for run in runs[4:7] for name in multipliers)
    assert len({run.params["lr.q"] for run in runs[4:8]}) == 4


@pytest.mark.parametrize("share", [None, 0.3])
def test_a_choice_of_a_group_is_made_in_both_stages(share: float | None) -> None:
    """It has no default, so it is searched from the beginning on."""
    choice = Dimension("lr.up", "categorical", choices=("low", "high"))
    dimensions = [choice if dim.name == "lr.up" else dim for dim in DIMENSIONS]
    plan, runs = settings(share=share), list[Run]()
    for number in range(8):
        _, params = choose_run(SearchState(plan, runs, dimensions, False, number, n_startup=4), [0])
        numbers = {**params, "lr.up": 1.0}
        runs.append(Run(number, params, BASE, Outcome.FINISHED, loss(numbers)))

    assert {"low", "high"} == {run.params["lr.up"] for run in runs}
    assert {1.0} == {run.params["lr.q"] for run in runs[:4]}
    assert all(run.params["lr.q"] != 1.0 for run in runs[4:])


def test_multipliers_alone_are_searched_at_once() -> None:
    """Where no HP of all tensors is open there is nothing to search first."""
    alone = [dim for dim in DIMENSIONS if dim.name != "lr"]
    _, params = choose_run(SearchState(settings(share=None), [], alone, False, 1, n_startup=4), [0])

    assert any(value != 1.0 for value in params.values())


def test_proposals_lie_in_the_ranges_and_unimportant_hps_stay(staged: list[Run]) -> None:
    """However often asked; a frozen HP stays exactly where the best run had it."""
    surrogate = fit_surrogate(staged, DIMENSIONS, settings())
    region = TrustRegion.of(surrogate, BASE, maximize=False)
    coordinates, generator = surrogate.coordinates, torch.Generator().manual_seed(0)
    for greedy in (True, False, False, False):
        params = propose_inside(surrogate, region, BASE, generator, greedy=greedy, frozen=["eps.q"])
        z = coordinates.z(params)

        assert bool(((coordinates.z_low <= z + 1e-9) & (z <= coordinates.z_high + 1e-9)).all())
        assert pytest.approx(float(region.centre[0]), abs=1e-9) == float(z[0])


def test_a_proposal_teaches_more_than_the_expected_optimum(staged: list[Run]) -> None:
    """It lowers the expected excess loss at the target by more, and lies close to the optimum if greedy."""
    surrogate = fit_surrogate(staged, DIMENSIONS, settings())
    region = TrustRegion.of(surrogate, BASE, maximize=False)
    coordinates, generator = surrogate.coordinates, torch.Generator().manual_seed(0)
    optimum = coordinates.unmix @ surrogate.optimum_posterior(BASE).optimum()[0]
    far, close = (
        (coordinates.z(propose_inside(surrogate, region, BASE, generator, greedy=greedy)) - optimum).norm()
        for greedy in (False, True)
    )

    assert float(far) > 2 * float(close)


def test_proposals_keep_away_from_the_cliff() -> None:
    """Where runs at a high multiplier diverge, no proposal is riskier than the centre, or than the limit."""
    rng = np.random.default_rng(0)
    runs = []
    for number in range(40):
        params = {dim.name: (dim.default or 1.0) * 2.0 ** rng.uniform(-1, 1) for dim in DIMENSIONS}
        is_over = params["lr.q"] > 1.2
        outcome = Outcome.DIVERGED if is_over else Outcome.FINISHED
        runs.append(Run(number, params, BASE, outcome, None if is_over else loss(params)))
    surrogate = fit_surrogate(runs, DIMENSIONS, settings())
    generator, coordinates = torch.Generator().manual_seed(0), surrogate.coordinates
    region = TrustRegion.of(surrogate, BASE, maximize=False)
    proposed = [propose_inside(surrogate, region, BASE, generator, greedy=False) for _ in range(10)]
    centre = coordinates.mix @ region.centre
    rows = [torch.cat([centre, torch.zeros(1)]), *(coordinates.row(params, BASE) for params in proposed)]
    risk = surrogate.divergence.probability(torch.stack(rows))

    assert float(risk[1:].max()) <= max(trust_region.RISK, float(risk[0])) + 1e-6
    assert len({params["lr.up"] for params in proposed}) > 1


def test_the_larger_rungs_get_their_share_by_hand() -> None:
    """A larger rung comes when it fits into a quarter of what is spent; the first stage does not count."""
    plain = Run(0, {"lr": 2**-6, "lr.q": 1.0}, BASE, Outcome.FINISHED, 2.0)
    moved = Run(1, {"lr": 2**-6, "lr.q": 2.0}, BASE, Outcome.FINISHED, 2.0)
    costs = {BASE: 1.0, LARGER: 4.0}

    assert BASE == next_rung({BASE: 1.0}, [moved] * 50, DEFAULTS)
    assert BASE == next_rung(costs, [plain] * 50, DEFAULTS)
    assert BASE == next_rung(costs, [moved] * 11, DEFAULTS)
    assert LARGER == next_rung(costs, [moved] * 12, DEFAULTS)
    assert BASE == next_rung(costs, [*[moved] * 12, replace(moved, scale=LARGER)], DEFAULTS)
    assert TARGET == next_rung(
        {**costs, TARGET: 6.0}, [*[moved] * 45, *[replace(moved, scale=LARGER)] * 2], DEFAULTS
    )


def test_larger_rungs_wait_until_a_multiplier_has_moved() -> None:
    """Where the best setting has all multipliers at 1, runs of it at a larger rung would show nothing."""
    plan = replace(settings(), scales=(BASE, LARGER, TARGET), proxies=(0, 1), costs=(1.0, 2.0, 16.0))
    at_one = {**DEFAULTS, "lr": 2**-5.0}
    worse = {**at_one, "lr.q": 4.0}
    first = [Run(i, {**at_one, "lr": 2 ** (-5.0 - i)}, BASE, Outcome.FINISHED, 2 + 0.2 * i) for i in range(6)]
    second = [Run(6 + i, worse, BASE, Outcome.FINISHED, 3.0 + 0.01 * i) for i in range(12)]

    rung, _ = choose_run(SearchState(plan, [*first, *second], DIMENSIONS, False, 18, n_startup=4), [0, 1])

    assert rung == 0

    better = [replace(run, loss=1.5) for run in second]
    rung, _ = choose_run(SearchState(plan, [*first, *better], DIMENSIONS, False, 18, n_startup=4), [0, 1])

    assert rung == 1


def test_at_a_larger_rung_the_centre_runs_whole_then_with_half_its_multipliers(staged: list[Run]) -> None:
    """Multipliers are the centre's or at their defaults; of many proposals about half are."""
    surrogate = fit_surrogate(staged, DIMENSIONS, settings())
    centre = TrustRegion.of(surrogate, BASE, maximize=False).centre
    generator = torch.Generator().manual_seed(0)
    region = TrustRegion.of(surrogate, BASE, maximize=False)
    whole = propose_at_larger_rung(surrogate, region, LARGER, BASE, generator)
    again = fit_surrogate([*staged, Run(10, whole, LARGER, Outcome.FINISHED, 1.9)], DIMENSIONS, settings())
    region = TrustRegion.of(again, BASE, maximize=False)
    halves = [propose_at_larger_rung(again, region, LARGER, BASE, generator) for _ in range(30)]
    here = region.centre
    at = np.array(
        [[abs(math.log2(params[dim.name])) for dim in DIMENSIONS if "." in dim.name] for params in halves]
    )
    moved = np.array([abs(float(here[i])) > 1e-3 for i, dim in enumerate(DIMENSIONS) if "." in dim.name])

    assert bool((surrogate.coordinates.z(whole)[[0, 2, 3]] - centre[[0, 2, 3]]).abs().max() < 1e-9)
    assert 0.3 < float((at[:, moved] < 1e-9).mean()) < 0.7


def test_a_multiplier_that_a_run_did_not_have_was_one() -> None:
    """Whatever the prior guess of it; another HP that is missing sits at its own guess."""
    dimensions = [Dimension("lr", "log", 2**-10, 2**-2, 2**-6), Dimension("lr.q", "log", 1 / 8, 8.0, 4.0)]
    coordinates = Coordinates(dimensions, BASE, ["width"])

    assert [0.0, -2.0] == coordinates.z({"lr": 2**-6}).tolist()
    assert math.isnan(float(coordinates.z({"lr.q": 4.0})[0]))
