"""A diagnosis as tables and sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console

from transfer_bo.diagnostics.laws import EXPONENTS
from transfer_bo.display.importance_text import agreement_sentences, method_rows
from transfer_bo.display.tables import make_table
from transfer_bo.display.text import (
    LOSS_DIGITS,
    UNDETERMINED,
    interval_text,
    number_text,
    scale_text,
    share_text,
)
from transfer_bo.quantities import counted

if TYPE_CHECKING:
    from transfer_bo.diagnostics.diagnose import Diagnosis
    from transfer_bo.diagnostics.importance import Importance
    from transfer_bo.diagnostics.intervals import Interval
    from transfer_bo.diagnostics.rates import Rates

__all__ = ["show_diagnosis"]

MOST_COLUMNS = 4
"""Scales that the table of importance shows; of more the first and the last ones."""


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print what the runs show of transfer, HP by HP, then importance and notes."""
    for hp in diagnosis.rates:
        _show_rates(diagnosis, hp, console)
        console.print()
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
            *_optimum_cells(diagnosis, rates, i),
            number_text(rates.best_loss[i].value, LOSS_DIGITS),
            interval_text(rates.best_loss[i].low, rates.best_loss[i].high, LOSS_DIGITS),
        ]
        for i, size in enumerate(rates.sizes)
    ]
    head = [diagnosis.axis, f"best {hp}", "90% interval", "best loss", "90% interval"]
    console.print(make_table(head, rows))

    _print(console, f"Transfer of {hp}: {rates.verdict}. {' '.join(rates.reasons)}")
    _print(
        console,
        f"Rates over {diagnosis.axis}: loss gap α: {_rate_text(rates.alpha)}; "
        f"optimum β: {_rate_text(rates.beta)}; cost of transfer γ: {_rate_text(rates.gamma)}.",
    )
    meaning = "" if math.isnan(metrics.kappa.value) else f" (below 0: errors of {hp} matter less with size)"
    _print(
        console,
        f"One law for all sizes: error E: {metrics.fit_error.text('.2%')} of the loss; "
        f"robustness κ: {metrics.kappa.text('+.2f')}{meaning}.",
    )


def _rate_text(rate: Interval) -> str:
    """A bound where the sizes determine one side only; undetermined outside its own interval."""
    if not math.isnan(rate.value) and rate.low == 0 and rate.value <= 2 * EXPONENTS[0]:
        return f"at most {rate.high:.2f}"
    if not math.isnan(rate.value) and math.isinf(rate.high) and rate.value >= EXPONENTS[-1] * (1 - 1e-9):
        return f"at least {rate.low:.2f}"
    if not math.isnan(rate.value) and not rate.holds(rate.value):
        return UNDETERMINED
    return rate.text()


def _optimum_cells(diagnosis: Diagnosis, rates: Rates, i: int) -> list[str]:
    """The optimum at a size and its interval, as far as the runs at this size determine them."""
    optimum, sweep = rates.optimum[i], diagnosis.sweeps[rates.hp]
    if math.isfinite(rates.sizes[i]) and not sweep.is_determined(optimum.value, i):
        return [f"end of range, {number_text(optimum.value)}", UNDETERMINED]
    return [number_text(optimum.value), interval_text(optimum.low, optimum.high)]


def _show_importance(importance: Importance, console: Console) -> None:
    """One verdict for each HP, from all methods; then the shares per scale, and how alike the scales are."""
    head, by_method = method_rows(importance)
    title = f"Importance: share by method, mean of {counted(len(importance.scales), 'scale')}"
    console.print(make_table(head, by_method, title=title))

    scales = importance.scales
    if len(scales) > 1:
        columns = list(range(len(scales)))
        if len(columns) > MOST_COLUMNS:
            columns = [*columns[: MOST_COLUMNS // 2], *columns[-MOST_COLUMNS // 2 :]]
        rows = [
            [str(hp), *(share_text(float(shares.iloc[i])) for i in columns)]
            for hp, shares in importance.table().iterrows()
        ]
        per_scale = ["HP", *(scale_text(scales[i], scales) for i in columns)]
        console.print(make_table(per_scale, rows, title="Mean share of the three methods, per scale"))
    for sentence in agreement_sentences(importance):
        _print(console, sentence)
