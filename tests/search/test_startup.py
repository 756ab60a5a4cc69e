"""How many start-up runs there are, and what they spend."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.dimension import Dimension
from transfer_bo.records import StudySettings
from transfer_bo.scale import Scale
from transfer_bo.search.startup import BUDGET_SHARE, MIN_AFFORDABLE, startup_count, startup_rung
from transfer_bo.search.state import SearchState

DIMENSIONS = [Dimension("lr", "log", 1e-4, 1e-1), Dimension("batch", "log", 16, 1024)]


@settings(deadline=None)
@given(st.lists(st.floats(1.0, 50.0), min_size=1, max_size=6), st.floats(2.0, 500.0))
def test_start_up_runs_spend_at_most_their_share(costs: list[float], budget: float) -> None:
    """However much the rungs cost; or there are only as few as there must be, at the cheapest rung."""
    scales = tuple(Scale(width=2**i) for i in range(len(costs) + 1))
    rungs = range(len(costs))
    plan = StudySettings(scales, tuple(rungs), scales[-1], (*costs, 1000.0), budget=budget)
    count = startup_count(SearchState(plan, [], DIMENSIONS, False, 0), rungs)
    chosen = [
        startup_rung(SearchState(plan, [], DIMENSIONS, False, number), rungs, count)
        for number in range(count)
    ]
    spent = sum(costs[index] for index in chosen)

    if count > MIN_AFFORDABLE:
        assert spent <= BUDGET_SHARE * budget * (1 + 1e-9)
    else:
        assert spent <= max(BUDGET_SHARE * budget, count * min(costs)) * (1 + 1e-9)


def test_with_room_in_the_budget_cheap_rungs_take_turns() -> None:
    """Those that cost at most two and a half times as much as the cheapest one."""
    scales = tuple(Scale(width=width) for width in (32, 64, 128, 1024))
    plan = StudySettings(scales, (0, 1, 2), scales[-1], (1.0, 2.0, 4.0, 100.0), budget=20.0)
    rungs = [startup_rung(SearchState(plan, [], DIMENSIONS, False, n), range(3), 4) for n in range(4)]

    assert [0, 1, 0, 1] == rungs
