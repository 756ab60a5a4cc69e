"""How well a surrogate predicts runs that it does not know, as a table and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from transfer_bo.display.tables import make_table
from transfer_bo.display.text import LOSS_DIGITS, interval_text, number_text, scale_text, share_text
from transfer_bo.quantities import counted
from transfer_bo.scale import Scale

__all__ = ["held_out_table", "left_out_text"]


def held_out_table(folds: Sequence[Mapping[str, Any]]) -> Table:
    """A column for each fold of `leave_largest_out`, a row for each quantity; empty without folds."""
    quantities: dict[str, Callable[[Any], str]] = {
        "its runs": lambda fold: f"{fold['held_out_runs']}",
        "fitted to": lambda fold: counted(fold["fitted_runs"], "run"),
        "best measured": lambda fold: number_text(fold["measured_best"]["loss"], LOSS_DIGITS),
        "predicted there": lambda fold: _interval(fold["predicted_loss"], LOSS_DIGITS),
        "excess of nearest run": lambda fold: number_text(fold["nearest"]["excess"], 2),
        "at a distance of": lambda fold: f"{fold['nearest']['octaves_away']:.1f} octaves",
        "predicted excess": lambda fold: _interval(fold["nearest"], 2),
        "losses inside 90%": lambda fold: share_text(fold["losses_inside"]),
    }
    rows = [[name, *map(text, folds)] for name, text in quantities.items()] if folds else []
    head = ["left out", *(scale_text(Scale(fold["scale"])) for fold in folds)]
    title = "Largest scales left out in turn: predicted from cheaper runs alone, then compared"
    return make_table(head, rows, title=title)


def left_out_text(error: Mapping[str, Any]) -> str:
    """Whether each run, predicted from all others, ended as far off as predicted.

    Args:
        error: An `ErrorFactor` as JSON.
    """
    low, high = error["interval"]
    verdict = "below 1, so intervals are too narrow" if high < 1 else "1 is right, below 1 overconfident"
    return (
        f"Each of {error['runs']} runs predicted from all others: the predicted error is "
        f"{error['factor']:.2f} times the actual one (90% interval {low:.2f} to {high:.2f}; {verdict})."
    )


def _interval(estimate: Mapping[str, Any], digits: int) -> str:
    low, high = estimate["interval"]
    return interval_text(low, high, digits)
