"""What the surrogate has learned: loss along each HP, drift, importance, and where runs diverge."""

from __future__ import annotations

from transfer_bo.diagnostics.importance import Importance, hp_importance
from transfer_bo.display.figure_style import MAX_PANELS
from transfer_bo.display.figures import draw_divergence, draw_drift, draw_importance, draw_landscape
from transfer_bo.display.importance_text import agreement_sentences, method_rows
from transfer_bo.display.suggestion_text import stability_sentences
from transfer_bo.display.text import octaves_text
from transfer_bo.errors import DiagnosticError, NoRunsError
from transfer_bo.quantities import LEVEL_SD, counted, is_positive
from transfer_bo.records import Outcome, read_dimensions
from transfer_bo.report import page
from transfer_bo.report.state import State

__all__ = ["divergence", "drift_of_optimum", "importance", "landscape"]

DRAWS = {"N-RReliefF": 30}
"""Bootstrap draws of the rank correlation; PED-ANOVA's would take as long as the rest of the report."""

ABOUT_LANDSCAPE = (
    "Top: dots are finished runs (their other HPs are wherever the search put them, so they lie off the "
    "curve); lines are the fitted loss along this HP with all others at that scale's optimum, bands hold "
    "90%. Bottom: the optimum at each scale with its 90% interval, from the cheapest scale down to the "
    "target; a straight vertical line would be perfect transfer. The dashed line is what is set at the "
    "target. The fit knows all runs, those at the target too."
)
ABOUT_DRIFT = (
    "How far the optimum moves when an axis of scale doubles, in octaves (+1: it doubles as well); 90% "
    "intervals. Where black and grey are equally wide, the runs do not inform the drift and the interval is "
    "that of the prior."
)
ABOUT_IMPORTANCE = (
    "Share of each HP in the spread of the fitted loss over its searched range, the others at their optimum; "
    "each column sums to 100%. It depends on the ranges: a wider range makes an HP more important."
)
ABOUT_METHODS = (
    "Table: from the finished runs alone, without the fit, and so where the search looked. N-RReliefF "
    "compares runs with their nearest neighbours, fANOVA averages a random forest over all other HPs, "
    "PED-ANOVA compares good runs with all; means over the scales. Important: every method gives the HP more "
    "than an equal share; minor: none does; undetermined: they disagree. Unimportant: N-RReliefF and fANOVA "
    "both find it no more important than shadow features (shuffled copies of HPs, which have no influence), "
    "at the scale with the most finished runs. That takes two finished runs per HP."
)
ABOUT_DIVERGENCE = (
    "Dots are runs that gave a loss, crosses runs that diverged, in the order they were made from bottom to "
    "top; grey is the share that diverged in each sixth of the runs. HPs with the clearest edge come first."
)


def landscape(state: State) -> list[str]:
    """Loss along each HP and the optimum's path."""
    if state.fit is None or not state.fit.hps:
        return [page.paragraph("No curve can be drawn before the first run has finished.")]

    parts = []
    hidden = len(state.fit.hps) - MAX_PANELS
    if hidden > 0:
        words = (
            f"The {MAX_PANELS} most important HPs; {counted(hidden, 'more is', 'more are')} in the tables."
        )
        parts.append(page.paragraph(words))
    drawing = draw_landscape(state.fit, chosen=state.chosen, maximize=state.maximize, max_panels=MAX_PANELS)
    alt = "A panel per HP: loss against its value at each scale"
    return [*parts, page.figure(drawing, alt, ABOUT_LANDSCAPE)]


def drift_of_optimum(state: State) -> list[str]:
    """How far the optimum moves with scale."""
    if state.suggestion is None or not state.suggestion.drift:
        return [page.paragraph("No drift can be fitted before the first run has finished.")]

    drift = dict(sorted(state.suggestion.drift.items(), key=lambda item: -state.importance.get(item[0], 0.0)))
    rows = [
        [
            hp,
            axis,
            octaves_text(d["mean"]),
            _interval(d["mean"], d["sd"]),
            octaves_text(d["prior_mean"]),
            _interval(d["prior_mean"], d["prior_sd"]),
        ]
        for hp, per_axis in drift.items()
        for axis, d in per_axis.items()
    ]
    head = [
        *("HP", "per doubling of", "fitted, octaves", "90% interval"),
        *("prior, octaves", "90% interval of the prior"),
    ]
    alt = "Drift of each HP's optimum per doubling of each axis, fitted and prior"
    return [
        page.figure(draw_drift(drift), alt, ABOUT_DRIFT),
        page.details("The numbers", page.table(head, rows)),
    ]


def _interval(mean: float, sd: float) -> str:
    return f"{octaves_text(mean - LEVEL_SD * sd)} to {octaves_text(mean + LEVEL_SD * sd)}"


def importance(state: State) -> list[str]:
    """Which HPs matter, per scale."""
    if state.fit is None or not state.fit.hps:
        return [page.paragraph("Importance is not known before the first run has finished.")]

    drawing = draw_importance(state.fit)
    return [
        page.figure(drawing, "Share of each HP in the spread of the loss, per scale", ABOUT_IMPORTANCE),
        *_of_methods(state),
    ]


def _of_methods(state: State) -> list[str]:
    """The verdict on each HP from the runs alone, by all methods, or why there is none."""
    distributions = [trial.distributions for trial in state.study.get_trials(deepcopy=False)]
    runs = [run for run in state.runs if run.purpose == "search"]
    try:
        found = hp_importance(runs, read_dimensions(distributions, {}), draws=DRAWS)
    except (DiagnosticError, NoRunsError) as error:
        return [page.paragraph(f"No importance from the runs alone: {error}")]

    return [
        page.table(*method_rows(found)),
        *map(page.paragraph, [_unimportant_text(found), *agreement_sentences(found)]),
        page.paragraph(ABOUT_METHODS, "quiet"),
    ]


def _unimportant_text(found: Importance) -> str:
    hps = sorted(hp for hp, verdict in found.verdict.items() if verdict == "unimportant")
    if not hps:
        return "No HP is found to be unimportant."
    return f"Unimportant, and so not worth searching further: {', '.join(hps)}."


def divergence(state: State) -> list[str]:
    """Where runs diverge."""
    if not any(run.outcome is Outcome.DIVERGED for run in state.runs):
        return [page.paragraph("No run has diverged.")]

    hps = {hp for run in state.own for hp, value in run.params.items() if is_positive(value)}
    drawing = draw_divergence(state.own, sorted(hps))
    sentences = [] if state.suggestion is None else stability_sentences(state.suggestion)
    return [
        page.figure(drawing, "Which runs diverged, along each HP", ABOUT_DIVERGENCE),
        *map(page.paragraph, sentences),
    ]
