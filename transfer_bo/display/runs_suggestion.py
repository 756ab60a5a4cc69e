"""A suggestion from runs as tables on a console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from transfer_bo.run_table.published_laws import LAWS
from transfer_bo.run_table.suggest import RunsFit, RunsSuggestion
from transfer_bo.synonyms import axis_kind, hp_kind

__all__ = ["show"]

_COPIES = {
    "suggestion": "the suggestion",
    "copy_best": "best run of the largest scale, copied",
    "copy_largest": "fitted optimum of the largest scale, copied",
    "copy_base": "fitted optimum of the smallest scale, copied",
}


def show(fit: RunsFit, suggestion: RunsSuggestion, console: Console) -> None:
    """Print a suggestion and all that it rests on."""
    from transfer_bo.display.tables import projection_table

    evidence = suggestion.evidence
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(evidence["rows"].items()))
    outside = ", ".join(f"{axis} {far:+.1f}" for axis, far in evidence["beyond"].items())
    columns = fit.columns
    hps = ", ".join(f"{name} ({kind})" for name, kind in columns.hps.items())
    console.print(
        f"Columns: axes {', '.join(columns.axes)}; HPs {hps}; metric {columns.loss}", soft_wrap=True
    )
    console.print(f"Runs: {counts}. The target lies outside them by, in doublings: {outside}", soft_wrap=True)
    for table in (
        projection_table(suggestion),
        _drift(fit, suggestion),
        _excess(evidence),
        _held_out(evidence),
        _ranks(evidence),
        _laws(evidence),
        _tensors(suggestion.tensors or []),
    ):
        if table.row_count:
            console.print()
            console.print(table)
    console.print()
    for warning in suggestion.warnings:
        console.print(f"Note: {warning}", soft_wrap=True, markup=False)


def _table(*columns: str, title: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _scale(axes: Mapping[str, float]) -> str:
    return ", ".join(f"{axis} {value:g}" for axis, value in axes.items())


def _theory(hp: str, axis: str) -> str:
    """The exponent that Complete(d)P gives a raw learning rate along an axis."""
    for law in LAWS:
        if law.name == "Complete(d)P" and law.hp == hp_kind(hp) and axis_kind(axis) in law.exponents:
            return f"{law.exponents[axis_kind(axis)]:+.2f}"
    return ""


def _drift(fit: RunsFit, suggestion: RunsSuggestion) -> Table:
    raw = fit.options.coordinates == "raw"
    table = _table(
        *("HP", "along", "with the runs", "90% interval", "prior", "theory"),
        title="Drift of the optimum, octaves per doubling",
    )
    for hp, by_axis in suggestion.drift.items():
        for axis, d in by_axis.items():
            low, high = d["mean"] - 1.645 * d["sd"], d["mean"] + 1.645 * d["sd"]
            table.add_row(
                hp,
                axis,
                f"{d['mean']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{d['prior_mean']:+.2f} ± {d['prior_sd']:.2f}",
                _theory(hp, axis) if raw else "+0.00",
            )
    return table


def _excess(evidence: Mapping[str, Any]) -> Table:
    table = _table(
        "setting", "expected excess", "90% interval", title="What settings should cost at the target"
    )
    for key, words in _COPIES.items():
        price = evidence["excess"][key]["excess"]
        low, high = price["interval"]
        percent = f" ({price['percent']:.2g}%)" if "percent" in price else ""
        table.add_row(words, f"{price['mean']:.3g}{percent}", f"{low:.2g} to {high:.2g}")
    for hp, octaves in evidence["cliff_shift"].items():
        if abs(octaves) >= 0.05:
            words = f"{hp} is set {abs(octaves):.2f} octaves {'above' if octaves > 0 else 'below'} its median"
            table.add_row(words, "", "")
    return table


def _held_out(evidence: Mapping[str, Any]) -> Table:
    table = _table(
        *("left out (its runs)", "fitted to", "best measured", "predicted there"),
        *("excess of nearest run", "predicted", "losses inside 90%"),
        title="Largest scales left out in turn: predicted from cheaper runs alone, then compared",
    )
    for fold in evidence["held_out"]:
        nearest, loss = fold["nearest"], fold["predicted_loss"]
        table.add_row(
            f"{_scale(fold['scale'])} ({fold['held_out_runs']})",
            f"{fold['fitted_runs']} runs",
            f"{fold['measured_best']['loss']:.4f}",
            f"{loss['interval'][0]:.4f} to {loss['interval'][1]:.4f}",
            f"{nearest['excess']:.2g} ({nearest['octaves_away']:.1f} octaves off)",
            f"{nearest['interval'][0]:.2g} to {nearest['interval'][1]:.2g}",
            f"{fold['losses_inside']:.0%}",
        )
    return table


def _ranks(evidence: Mapping[str, Any]) -> Table:
    table = _table(
        *("axis", "compared", "shared settings", "rank correlation", "90% interval", "verdict"),
        title="Do cheap scales rank settings as expensive ones do?",
    )
    for r in evidence["rank_preservation"]:
        if r["verdict"] == "untested":
            table.add_row(r["axis"], "no setting was run at two scales", "", "", "", "untested")
            continue
        table.add_row(
            r["axis"],
            f"{r['from']:g} with {r['to']:g}",
            str(r["shared"]),
            f"{r['spearman']:.2f}",
            f"{r['interval'][0]:.2f} to {r['interval'][1]:.2f}",
            r["verdict"],
        )
    return table


def _laws(evidence: Mapping[str, Any]) -> Table:
    table = _table(
        "law", "HP", "its value", "suggestion is", "remark", title="Published laws, to compare with"
    )
    for law in evidence["reference_laws"]:
        factor = math.exp2(law["octaves"])
        remark = "; ".join(
            filter(None, [law["remark"], "from the largest scale's" if law["anchored"] else ""])
        )
        table.add_row(law["law"], law["hp"], f"{law['value']:.3g}", f"{factor:.2g} of it", remark)
    return table


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> Table:
    """Tensors with equal settings share a row."""
    options = [
        key
        for key in ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum")
        if any(key in t for t in tensors)
    ]
    table = _table(
        *("tensors", "role", *options, "init", "forward"),
        title="What each tensor gets at the target (init: times the base model's own spread)",
    )
    groups: dict[tuple[str, ...], list[str]] = {}
    for tensor in tensors:
        shown = [f"{tensor[key]:.4g}" if key in tensor else "" for key in (*options, "init", "forward")]
        groups.setdefault((tensor["role"], *shown), []).append(tensor["name"])
    for row, names in groups.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        table.add_row(names[0] + others, *row)
    return table
