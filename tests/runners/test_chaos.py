"""A short version of `make chaos`: workers killed, the database restarted, and nothing lost."""

from __future__ import annotations

from typing import Any

import pytest
from chaos import Plan, run
from postgres import why_not

SHORT: dict[str, Any] = {"workers": 3, "seconds": 1.0, "kill_every": 0.8, "most_kills": 3}
NO_SERVER = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_open_connections")
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan("postgresql", 12, restarts=1, **SHORT), marks=NO_SERVER),
        pytest.param(Plan("journal", 12, **SHORT)),
        pytest.param(Plan("grpc", 12, restarts=1, **SHORT), marks=[NO_SERVER, pytest.mark.slow]),
        pytest.param(Plan("sqlite", 12, **SHORT), marks=pytest.mark.slow),
    ],
    ids=lambda plan: plan.storage,
)
def test_nothing_is_lost_counted_twice_or_stuck(plan: Plan) -> None:
    """Every finished result is there once, the study ends by itself, and workers were really killed."""
    count = run(plan)

    assert count.ended
    assert (0, 0, 0) == (count.lost, count.twice, count.stuck)
    assert count.finished >= plan.trials
    assert count.kills >= 2
    assert plan.restarts == count.restarts
