"""Does a cheap scale rank settings as an expensive one does? A check before an axis serves as a fidelity.

For each axis, two values of it are compared at equal other axes, over the HP settings run at both: rank
correlation ρ (Spearman), with the interval of Bonett and Wright (Psychometrika 2000): z = atanh ρ has the
variance (1 + ρ²/2)/(n - 3).
Where the optimum drifts, ranks change for that reason too, which the projection corrects: a low correlation
means that copying would fail, and one near zero that the shape of the loss differs by more than a shift.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from transfer_bo.notes import Note
from transfer_bo.records import Outcome

__all__ = ["rank_preservation", "rank_warnings"]

KEPT = 0.5
"""Ranks are kept if the interval of the correlation lies above this, not kept if it lies below."""

LEAST_SETTINGS = 5
"""Settings that two scales must have in common to be compared."""

MAX_GROUPS = 200
"""Combinations of the other axes that are looked at, those with most rows first."""

MAX_VALUES = 8
"""Values of an axis whose pairs are compared, those with most rows."""


def rank_preservation(
    table: pd.DataFrame, axes: Sequence[str], hps: Sequence[str], maximize: bool, level: float = 0.9
) -> list[dict[str, Any]]:
    """Compare, for each axis that varies, the two of its values that have most settings in common.

    Args:
        table: axes, HPs, "loss" and "outcome" (`RunTable.table`); diverged runs rank last.
        axes: columns that are axes.
        hps: columns that are HPs.
        maximize: whether larger metrics are better.
        level: of the interval.

    Returns:
        A dict per axis: "axis", "from", "to", "shared", "spearman", "interval" and "verdict" ("kept", "not
        kept", "undecided", or "untested" with "shared" = 0).
    """
    rows = table[table["outcome"].isin([Outcome.FINISHED, Outcome.DIVERGED])]
    sign = -1.0 if maximize else 1.0
    value = np.where(rows["outcome"] == Outcome.FINISHED, sign * rows["loss"], np.inf)
    names = [*axes, *hps]
    settings = rows.assign(value=value)[[*names, "value"]].groupby(names, as_index=False, sort=False).mean()

    found = []
    for axis in axes:
        if settings[axis].nunique() > 1:
            found.append(_along(settings, axis, [a for a in axes if a != axis], list(hps), level))
    return found


def _along(
    settings: pd.DataFrame, axis: str, others: list[str], hps: list[str], level: float
) -> dict[str, Any]:
    """Compare two values of one axis; of pairs with as many common settings, those farthest apart."""
    groups = [rows for _, rows in settings.groupby(others)] if others else [settings]
    groups.sort(key=len, reverse=True)
    best: tuple[tuple[int, float], pd.DataFrame, float, float] | None = None
    for rows in groups[:MAX_GROUPS]:
        values = sorted(rows[axis].value_counts().head(MAX_VALUES).index)
        for small, large in itertools.combinations(values, 2):
            pair = rows[rows[axis] == small].merge(rows[rows[axis] == large], on=hps)
            key = len(pair), large / small
            if len(pair) >= LEAST_SETTINGS and (best is None or key > best[0]):
                best = key, pair, float(small), float(large)
    if best is None:
        return {"axis": axis, "shared": 0, "verdict": "untested"}

    (n, _), pair, small, large = best
    a, b = pair["value_x"].rank().to_numpy(), pair["value_y"].rank().to_numpy()
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # all equal: no ranks to keep
        return {"axis": axis, "shared": 0, "verdict": "untested"}

    rho = float(np.corrcoef(a, b)[0, 1])
    z = math.atanh(min(max(rho, -0.999999), 0.999999))
    half = float(ndtri((1 + level) / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = math.tanh(z - half), math.tanh(z + half)
    return {
        "axis": axis,
        "from": small,
        "to": large,
        "shared": n,
        "spearman": rho,
        "interval": [low, high],
        "verdict": "kept" if low > KEPT else "not kept" if high < KEPT else "undecided",
    }


def rank_warnings(found: Sequence[dict[str, Any]]) -> list[Note]:
    """A note for each axis along which ranks are not kept."""
    return [
        Note(
            f"Runs at {r['axis']} = {r['from']:g} do not rank settings as runs at {r['to']:g} do "
            f"(correlation {r['spearman']:.2f}, in 90% {r['interval'][0]:.2f} to {r['interval'][1]:.2f}).",
            "ranks_not_kept",
            column=r["axis"],
            spearman=r["spearman"],
        )
        for r in found
        if r["verdict"] == "not kept"
    ]
