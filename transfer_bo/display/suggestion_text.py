"""A suggestion for people: as text, and as HTML for notebooks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from transfer_bo.display.html import escape, html_table
from transfer_bo.display.tables import Ranges, suggestion_rows, suggestion_table
from transfer_bo.display.text import interval_text, number_text, scale_text, share_text
from transfer_bo.records import read_dimensions
from transfer_bo.surrogate.recommendation import BEST_RUN

if TYPE_CHECKING:
    from transfer_bo.projection import Suggestion

__all__ = [
    "comparison_sentences",
    "searched_ranges",
    "stability_sentences",
    "suggestion_html",
    "suggestion_parts",
    "suggestion_text",
]

WIDTH = 80
"""Columns of the text."""


BASE_COORDINATES = (
    "Values hold at the base scale; suggestion.export(p, ...) or p.at(target).table(params) gives those of "
    "each tensor at the target."
)


def searched_ranges(study: Any) -> Ranges:
    """The searched range of each numeric HP of a study, the hull over all its trials."""
    distributions = [trial.distributions for trial in study.get_trials(deepcopy=False)]
    dimensions = read_dimensions(distributions, {})
    return {dim.name: (dim.low, dim.high) for dim in dimensions if dim.transform != "categorical"}


def suggestion_text(suggestion: Suggestion, level: float = 0.9) -> str:
    """What to set, how sure that is, and what it was compared with, as lines of at most 80 columns.

    Args:
        suggestion: The suggestion.
        level: Probability of the intervals.
    """
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, highlight=False, color_system=None)
    for part in suggestion_parts(suggestion, level=level):
        console.print(part, markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def suggestion_parts(
    suggestion: Suggestion, *, level: float = 0.9, ranges: Ranges | None = None
) -> list[RenderableType]:
    """A table of HPs and loss, and sentences, to be printed one below the other.

    Args:
        suggestion: The suggestion.
        level: Probability of the intervals.
        ranges: Searched range of each HP, shown beside the values if given.
    """
    return [suggestion_table(suggestion, level=level, ranges=ranges), *_sentences(suggestion)]


def suggestion_html(suggestion: Suggestion, level: float = 0.9) -> str:
    """The same as HTML, for notebooks."""
    title = f"<p><b>Suggestion for {escape(scale_text(suggestion.target))}</b></p>"
    table = html_table(*suggestion_rows(suggestion, level))
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in _sentences(suggestion))
    return f"<div>{title}{table}{sentences}</div>"


def _sentences(suggestion: Suggestion) -> list[str]:
    notes = [f"Note: {warning}" for warning in suggestion.warnings]
    if suggestion.provenance.get("coordinates") == "base":
        notes.insert(0, BASE_COORDINATES)
    return [*stability_sentences(suggestion), *comparison_sentences(suggestion), *notes]


def stability_sentences(suggestion: Suggestion) -> list[str]:
    """How likely a run diverges, and where along each HP half of the runs do."""
    probability = suggestion.divergence_probability
    if probability is None:
        return []
    sentences = [f"Probability that a run with the suggestion diverges: {share_text(probability)}."]
    for name, edge in suggestion.stability_edges.items():
        sentences.append(
            f"Half of the runs at the target diverge with {name} at {number_text(edge.value, 3)} (90% "
            f"interval {interval_text(*edge.interval, 2)}), more of them {edge.diverges} it."
        )
    return sentences


def comparison_sentences(suggestion: Suggestion) -> list[str]:
    """The expected losses of other settings, and whether copying the best run is as good."""
    others = [
        f"{name} +{number_text(baseline.difference, 2)} (worse with a probability of "
        f"{share_text(baseline.probability)})"
        for name, baseline in suggestion.baselines.items()
        if baseline.params != suggestion.params
    ]
    sentences = [f"Expected loss beside the suggestion: {', '.join(others)}."] if others else []

    best_run = suggestion.baselines.get(BEST_RUN)
    if best_run is not None and best_run.params == suggestion.params:
        sentences.append("This is a copy of the best run: no other setting is expected to be better.")
    elif best_run is not None and best_run.is_within_noise:
        sentences.append(
            "The gain over a copy of the best run is within the noise of one run, so the copy, a setting "
            f"that has been run, is the safe choice: suggestion.baselines[{BEST_RUN!r}].params."
        )
    return sentences
