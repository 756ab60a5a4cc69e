"""Tables of runs, for all tests of what tables look like; nothing is fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from transfer_bo.run_table.cleaning import RunTable, read_rows
from transfer_bo.run_table.columns import name_columns
from transfer_bo.run_table.read import read_table

PLAIN = pd.DataFrame(
    {
        "width": [64] * 3 + [128] * 3,
        "lr": [1e-3, 4e-3, 1.6e-2] * 2,
        "loss": [3.0, 2.8, 3.1, 2.8, 2.6, 2.9],
    }
)
"""Six runs: two widths with three learning rates each."""

ASK: dict[str, Any] = {"axes": ["width"], "hps": {"lr": "log"}, "target": {"width": 256}, "held_out": False}
"""The question to ask about them."""


@st.composite
def tables(draw: st.DrawFn, least: int = 4, most: int = 12) -> pd.DataFrame:
    """Runs at up to three widths, all different and none far above the others."""
    n = draw(st.integers(least, most))
    octaves = draw(st.lists(st.floats(-12, -4), min_size=n, max_size=n, unique_by=lambda z: round(z, 3)))
    widths = draw(st.lists(st.sampled_from([64, 128, 256]), min_size=n, max_size=n))
    noise = draw(st.lists(st.floats(0, 0.05), min_size=n, max_size=n))
    losses = [
        round(2 + 8 / width**0.5 + 0.02 * (z + 8) ** 2 + e, 6)
        for z, width, e in zip(octaves, widths, noise, strict=True)
    ]
    return pd.DataFrame({"width": widths, "lr": np.round(np.exp2(octaves), 9), "loss": losses})


def understood(
    runs: Any,
    axes: Any = ("width",),
    hps: Mapping[str, str] | None = None,
    loss: str = "loss",
    status: str | None = None,
) -> RunTable:
    """The runs in a table as they are understood, before any fit."""
    table = read_table(runs, loss=loss)
    columns = name_columns(table, axes, hps or {"lr": "log"}, loss, status)
    return read_rows(table, columns, maximize=False, seed=0)


def rows_of(table: RunTable) -> list[tuple[Any, ...]]:
    """What is known of each run, to compare tables; numbers to nine digits."""
    return [
        (
            *(_short(value) for value in (run.scale or {}).values()),
            *(_short(value) for value in run.params.values()),
            str(run.outcome),
            _short(run.loss),
        )
        for run in table.runs
    ]


def codes(table: RunTable) -> list[str]:
    """The codes of its notes."""
    return [note.code for note in table.notes]


def _short(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) and math.isfinite(value) else value
