"""A diagnosis as tables and sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console

from transfer_bo.display.tables import make_table
from transfer_bo.display.text import LOSS_DIGITS, interval_text, number_text, octaves_text

if TYPE_CHECKING:
    from transfer_bo.diagnostics.diagnose import Diagnosis
    from transfer_bo.diagnostics.importance import Importance

__all__ = ["show_diagnosis"]


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print what the runs say about transfer, HP by HP, then importance and notes."""
    for hp in diagnosis.rates:
        _show_rates(diagnosis, hp, console)
    if diagnosis.importance is not None:
        _show_importance(diagnosis.importance, console)
    for note in diagnosis.notes:
        _print(console, f"Note: {note}")


def _print(console: Console, sentence: str) -> None:
    console.print(sentence, soft_wrap=True, markup=False)


def _show_rates(diagnosis: Diagnosis, hp: str, console: Console) -> None:
    rates, metrics = diagnosis.rates[hp], diagnosis.metrics[hp]
    rows = [
        [
            size,
            optimum.value,
            interval_text(optimum.low, optimum.high),
            number_text(best.value, LOSS_DIGITS),
            interval_text(best.low, best.high, LOSS_DIGITS),
        ]
        for size, optimum, best in zip(rates.sizes, rates.optimum, rates.best_loss, strict=True)
    ]

    console.print(
        make_table([diagnosis.axis, f"best {hp}", "90% interval", "best loss", "90% interval"], rows)
    )
    _print(console, f"Transfer of {hp}: {rates.verdict}. {' '.join(rates.reasons)}")
    _print(
        console,
        f"Rates over {diagnosis.axis}: loss gap α = {rates.alpha.text()}, "
        f"optimum β = {rates.beta.text()}, cost of transfer γ = {rates.gamma.text()}.",
    )
    _print(
        console,
        f"One law for all sizes: misses by E = {metrics.fit_error.text('.2%')} of the loss; "
        f"robustness κ = {metrics.kappa.text('+.2f')} (below 0: errors of {hp} matter less with size).",
    )


def _show_importance(importance: Importance, console: Console) -> None:
    for method in importance.shares:
        shares = importance.table(method)
        rows = [[str(hp), *(f"{share:.2f}" for share in row)] for hp, row in shares.iterrows()]
        head = [method, *map(str, shares.columns)]
        console.print(make_table(head, rows, title="Share of each HP in the loss, per scale"))
        if method in importance.agreement:
            value, low, high = importance.agreement[method]
            interval = (
                "" if math.isnan(low) else f" (90% interval {octaves_text(low)} to {octaves_text(high)})"
            )
            _print(console, f"Rank correlation between scales by {method}: {octaves_text(value)}{interval}")
    for sentence in importance.left_out:
        _print(console, f"Note: {sentence}")
