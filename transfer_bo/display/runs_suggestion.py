"""A suggestion from runs as tables on a console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from transfer_bo.display.prediction_errors import held_out_table, left_out_text
from transfer_bo.display.suggestion_text import comparison_sentences, stability_sentences
from transfer_bo.display.tables import make_table, suggestion_table
from transfer_bo.display.text import (
    interval_text,
    number_text,
    octaves_text,
)
from transfer_bo.quantities import LEVEL_SD
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


_TENSOR_OPTIONS = ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum")
"""Settings of the optimizer, in the order in which they are shown."""
NOTABLE_OCTAVES = 0.05
"""Distance between the suggested value and the optimum's median from which it is shown."""


def show(fit: RunsFit, suggestion: RunsSuggestion, console: Console) -> None:
    """Print a suggestion and all that it rests on."""
    evidence = suggestion.evidence
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(evidence["rows"].items()))
    outside = ", ".join(f"{axis} {far:+.1f}" for axis, far in evidence["beyond"].items())
    columns = fit.columns
    hps = ", ".join(f"{name} ({kind})" for name, kind in columns.hps.items())
    for sentence in (
        f"Columns: axes {', '.join(columns.axes)}; HPs {hps}; metric {columns.loss}",
        f"Runs: {counts}. The target lies outside them by, in doublings: {outside}",
    ):
        console.print(sentence, soft_wrap=True, markup=False)

    for table in (
        suggestion_table(suggestion),
        _drift(fit, suggestion),
        _excess(evidence),
        held_out_table(evidence["held_out"]),
        _ranks(evidence),
        _laws(evidence),
        _tensors(suggestion.tensors or []),
    ):
        if table.row_count:
            console.print()
            console.print(table)

    console.print()
    for sentence in [
        left_out_text(evidence["leave_one_out"]),
        *stability_sentences(suggestion),
        *comparison_sentences(suggestion),
    ]:
        console.print(sentence, soft_wrap=True, markup=False)
    for warning in suggestion.warnings:
        console.print(f"Note: {warning}", soft_wrap=True, markup=False)


def _interval(estimate: Mapping[str, Any], digits: int) -> str:
    low, high = estimate["interval"]
    return interval_text(low, high, digits)


def _theory(hp: str, axis: str, kinds: Mapping[str, str]) -> str:
    """The exponent that Complete(d)P gives a raw learning rate along an axis."""
    of_hp, of_axis = kinds.get(hp, hp_kind(hp)), kinds.get(axis, axis_kind(axis))
    for law in LAWS:
        if law.name == "Complete(d)P" and law.hp == of_hp and of_axis in law.exponents:
            return octaves_text(law.exponents[of_axis])
    return ""


def _drift(fit: RunsFit, suggestion: RunsSuggestion) -> Table:
    is_raw = fit.options.coordinates == "raw"
    rows = []
    for hp, by_axis in suggestion.drift.items():
        for axis, d in by_axis.items():
            low, high = d["mean"] - LEVEL_SD * d["sd"], d["mean"] + LEVEL_SD * d["sd"]
            rows.append(
                [
                    hp,
                    axis,
                    octaves_text(d["mean"]),
                    f"{octaves_text(low)} to {octaves_text(high)}",
                    f"{octaves_text(d['prior_mean'])} ± {d['prior_sd']:.2f}",
                    _theory(hp, axis, fit.options.kinds) if is_raw else octaves_text(0.0),
                ]
            )
    head = ["HP", "along", "with the runs", "90% interval", "prior", "theory"]
    return make_table(head, rows, title="Drift of the optimum, octaves per doubling")


def _excess(evidence: Mapping[str, Any]) -> Table:
    rows = []
    for key, words in _COPIES.items():
        price = evidence["excess"][key]["excess"]
        percent = f" ({number_text(price['percent'], 2)}%)" if "percent" in price else ""
        rows.append([words, number_text(price["mean"], 3) + percent, _interval(price, 2)])
    for hp, octaves in evidence["cliff_shift"].items():
        if abs(octaves) >= NOTABLE_OCTAVES:
            side = "above" if octaves > 0 else "below"
            rows.append([f"{hp} is set {abs(octaves):.2f} octaves {side} its median", "", ""])
    head = ["setting", "expected excess", "90% interval"]
    return make_table(head, rows, title="What settings should cost at the target")


def _ranks(evidence: Mapping[str, Any]) -> Table:
    rows = []
    for ranks in evidence["rank_preservation"]:
        if ranks["verdict"] == "untested":
            rows.append([ranks["axis"], "no setting was run at two scales", "", "", "", "untested"])
            continue
        rows.append(
            [
                ranks["axis"],
                f"{number_text(ranks['from'])} with {number_text(ranks['to'])}",
                str(ranks["shared"]),
                f"{ranks['spearman']:.2f}",
                f"{ranks['interval'][0]:.2f} to {ranks['interval'][1]:.2f}",
                ranks["verdict"],
            ]
        )
    head = ["axis", "compared", "settings", "correlation", "90% interval", "verdict"]
    return make_table(head, rows, title="Do cheap scales rank settings as expensive ones do?")


def _laws(evidence: Mapping[str, Any]) -> Table:
    rows = []
    for law in evidence["reference_laws"]:
        remarks = [law["remark"], "from the largest scale's" if law["anchored"] else ""]
        ratio = f"{number_text(math.exp2(law['octaves']), 2)} of it"
        rows.append(
            [law["law"], law["hp"], number_text(law["value"], 3), ratio, "; ".join(filter(None, remarks))]
        )
    head = ["law", "HP", "its value", "suggestion is", "remark"]
    return make_table(head, rows, title="Published laws, to compare with")


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> Table:
    """Tensors with equal settings share a row."""
    options = [*_TENSOR_OPTIONS, "init", "forward"]
    groups: dict[tuple[str, ...], list[str]] = {}
    for tensor in tensors:
        shown = [number_text(tensor[key]) if key in tensor else "" for key in options]
        groups.setdefault((tensor["role"], *shown), []).append(tensor["name"])

    rows = []
    for row, names in groups.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        rows.append([names[0] + others, *row])
    title = "What each tensor gets at the target (init: times the base model's own spread)"
    return make_table(["tensors", "role", *options], rows, title=title)
