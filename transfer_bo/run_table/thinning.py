"""A selection of the rows of a large table: the time of a fit grows with the cube of their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from transfer_bo.notes import Note
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome

__all__ = ["thin"]

BINS_PER_DOUBLING = 2
"""Scales whose axes all round to the same number of half doublings share a bin."""


def thin(
    clean: pd.DataFrame,
    axes: Sequence[str],
    hps: Sequence[str],
    *,
    most: int,
    seed: int,
    maximize: bool,
    notes: list[Note],
    groups: Sequence[str] = (),
) -> pd.DataFrame:
    """Select at most `most` finished rows and as many others.

    Repeats of a setting are averaged first. If there are still too many rows, each bin of scales (half a
    doubling wide, so that a table in which every run has a scale of its own has few) fills one half of its
    share with its best rows, which tell where the optimum is, and the other half evenly over the ranks of the
    remaining rows, which tell the shape.

    Args:
        clean: axes, HPs, "loss" and "outcome" of the usable rows.
        axes: columns that are axes of scale.
        hps: columns that are HPs.
        most: finished rows that are kept.
        seed: of the random choice among the rows that did not finish.
        maximize: whether larger metrics are better.
        notes: a sentence is appended for each step that dropped rows.
        groups: further columns by which rows are grouped.

    Returns:
        The selected rows, finished ones first.
    """
    finished = clean[clean["outcome"] == Outcome.FINISHED]
    others = clean[clean["outcome"] != Outcome.FINISHED]

    before = len(finished)
    if before > most:
        settings = finished.groupby([*axes, *hps, *groups], as_index=False, sort=False)
        finished = settings.agg({"loss": "mean", "outcome": "first"})
        if len(finished) < before:
            notes.append(
                Note(
                    f"{counted(before, 'finished row')} with {counted(len(finished), 'setting')} "
                    "between them; "
                    "repeats were averaged.",
                    "repeats_averaged",
                    rows=before,
                    settings=len(finished),
                )
            )

    if len(finished) > most:
        n_settings = len(finished)
        finished = _best_and_spread_per_bin(finished, axes, groups, most, maximize)
        notes.append(
            Note(
                f"Of {n_settings} settings {counted(len(finished), 'is', 'are')} fitted: per scale the "
                "best and a spread.",
                "settings_selected",
                settings=n_settings,
                fitted=len(finished),
            )
        )

    if len(others) > most:
        notes.append(
            Note(
                f"Of {len(others)} diverged or stopped rows {most} are used, drawn at random.",
                "others_selected",
                rows=len(others),
                fitted=most,
            )
        )
        others = others.sample(most, random_state=seed)
    return pd.concat([finished, others], ignore_index=True)


def _best_and_spread_per_bin(
    finished: pd.DataFrame, axes: Sequence[str], groups: Sequence[str], most: int, maximize: bool
) -> pd.DataFrame:
    """At most `most` rows, shared out evenly over the bins of scales."""
    place = [np.round(BINS_PER_DOUBLING * np.log2(finished[axis])) for axis in axes]
    together = finished.groupby([*place, *(finished[name] for name in groups)])
    bins = [rows.sort_values("loss", ascending=not maximize) for _, rows in together]
    shares = _shares([len(rows) for rows in bins], most)
    return pd.concat(
        rows.iloc[_best_and_spread(len(rows), share)] for rows, share in zip(bins, shares, strict=True)
    )


def _shares(sizes: list[int], total: int) -> list[int]:
    """`total` rows divided over bins as evenly as their sizes allow."""
    shares = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for position, i in enumerate(order):
        shares[i] = min(sizes[i], total // (len(order) - position))
        total -= shares[i]
    return shares


def _best_and_spread(size: int, n: int) -> list[int]:
    """`n` of `size` ranks: half of them the best, the other half evenly over the remaining ranks."""
    n_best = min(n, (n + 1) // 2)
    n_spread = n - n_best
    spread = np.linspace(n_best, size - 1, n_spread).round().astype(int)
    return sorted({*range(n_best), *spread.tolist()})
