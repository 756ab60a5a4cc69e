"""The parts of a report, as HTML made from a `State`; what is not there yet is said in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transfer_bo.diagnostics.importance import nil_hps
from transfer_bo.display import figures
from transfer_bo.errors import TransferError
from transfer_bo.records import ERROR_ATTR, Outcome, Run, StudySettings, read_dimensions, spent
from transfer_bo.report import page
from transfer_bo.report.state import State
from transfer_bo.scale import Scale
from transfer_bo.space import DEPTH, KINDS, split_name
from transfer_bo.verification.jobs import Verification

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "divergence",
    "drift_of_optimum",
    "headline",
    "importance",
    "landscape",
    "prediction",
    "runs_and_compute",
    "target_settings",
    "tensors",
]

LEVEL = 0.9

ABOUT = {
    "settings": (
        "HPs as searched: under a parametrization these are base coordinates, and a grouped HP "
        "multiplies the plain one of its kind for the tensors of that group. The suggested value "
        "is the one with the least expected loss, which under an asymmetric cliff is not the "
        "middle of the interval."
    ),
    "verified": (
        "“Verified” is what ran at the target; “suggested” also knows how that run ended, so it may differ."
    ),
    "prediction": (
        "Left: every finished run of the search, the best of each rung outlined, and the fitted "
        "loss at each scale's optimum (dash); the axis is cut where runs with poor HPs would "
        "squeeze the rest. Right: "
    ),
    "before": "the 90% interval that was predicted before the run, beside the measured losses.",
    "now": "the 90% interval as predicted now.",
    "landscape": (
        "Top: dots are finished runs (their other HPs are wherever the search put them, so they "
        "lie off the curve); lines are the fitted loss along this HP with all others at that "
        "scale's optimum, bands hold 90%. Bottom: the optimum at each scale with its 90% "
        "interval, from the cheapest scale down to the target; a straight vertical line would be "
        "perfect transfer. The dashed line is what is set at the target. "
        "The fit knows all runs, those at the target too."
    ),
    "drift": (
        "How far the optimum moves when an axis of scale doubles, in octaves (+1: it doubles as "
        "well); 90% intervals. Where black and grey are equally wide, the runs said nothing and "
        "the prior speaks."
    ),
    "importance": (
        "Share of each HP in the spread of the fitted loss over its searched range, the others at "
        "their optimum; each column sums to 100%. It depends on the ranges: a wider range makes "
        "an HP more important."
    ),
    "nil": (
        "Nil means: N-RReliefF and fANOVA both find it no more important than made-up HPs that have no "
        "influence, at the scale with the most finished runs. It takes two finished runs per HP."
    ),
    "divergence": (
        "Dots are runs that gave a loss, crosses runs that diverged, in the order they were made from bottom "
        "to top; grey is the share that diverged in each sixth of the runs. HPs with the clearest edge come "
        "first."
    ),
    "tensors": (
        "What the optimizer and the initialisation get for each tensor at the target, under the HPs that "
        "were verified there or else are suggested; “rule” is the factor of the parametrization relative "
        "to the base."
    ),
    "effort": (
        "A stopped run counts as far as it got. Time is wall-clock inside the objective, summed over runs."
    ),
}
"""What a reader needs to know to read each part."""


def headline(state: State) -> str:
    """Verdict, key numbers and warnings: what a reader in a hurry needs."""
    parts = [page.paragraph(f"Study {state.study.study_name!r}" + _target_words(state), "quiet")]
    check, suggestion = state.verified, state.suggestion
    cards: list[tuple[str, str]] = []
    if check is not None and check.predicted is not None:
        mean, low, high = check.predicted
        verdict = Verification(
            target=check.scale,
            measured=check.loss,
            predicted_mean=mean,
            interval=(low, high),
            control={control.name: control.loss for control in state.controls},
            level=LEVEL,
            maximize=state.maximize,
        )
        parts.append(_verdict(_colour(verdict), verdict.text))
        cards.append(("predicted loss, before the run", f"{mean:.4f}  [{low:.4f}, {high:.4f}]"))
        cards.append(("measured", "no loss" if check.loss is None else f"{check.loss:.4f}"))
        cards += [
            (f"control: {c.name}", "no loss" if c.loss is None else f"{c.loss:.4f}") for c in state.controls
        ]
    elif suggestion is not None:
        low, high = suggestion.predicted_loss.interval(LEVEL)
        parts.append(
            _verdict(
                "",
                "The projection has not been verified: no run of a suggestion at the target has ended yet.",
            )
        )
        cards.append(
            ("predicted loss at the target", f"{suggestion.predicted_loss.mean:.4f}  [{low:.4f}, {high:.4f}]")
        )
    else:
        parts.append(_verdict("", f"There is no projection yet. {state.missing}"))
    if state.settings is not None:
        cards.append(("tuning compute", f"{_search_effort(state.settings, state.runs):.2f} target runs"))
    finished = sum(run.outcome is Outcome.FINISHED for run in state.own)
    cards.append(("runs finished / all", f"{finished} / {len(state.own)}"))
    items = "".join(
        f'<li><div class="what">{page.text(what)}</div><div class="value">{page.text(value)}</div></li>'
        for what, value in cards
    )
    parts.append(f'<ul class="cards">{items}</ul>')
    if suggestion is not None and suggestion.warnings:
        said = "".join(f"<li>{page.text(words)}</li>" for words in suggestion.warnings)
        parts.append(f'<p><b>Warnings</b></p><ul class="warnings">{said}</ul>')
    return "".join(parts)


def _target_words(state: State) -> str:
    return "" if state.settings is None else f"; target: {figures.scale_label(state.settings.target)}"


def _colour(verdict: Verification) -> str:
    """Style: good if the interval held and no control did better, bad if it did not hold, else mixed."""
    if verdict.measured is None or not verdict.inside:
        return "bad"
    sign = -1 if verdict.maximize else 1
    beaten = any(
        loss is not None and sign * loss < sign * verdict.measured for loss in verdict.control.values()
    )
    return "mixed" if beaten else "good"


def _verdict(kind: str, words: str) -> str:
    return f'<div class="verdict {kind}">{page.paragraph(words)}</div>'


def target_settings(state: State) -> list[str]:
    """A row per HP: what was run at the target, what the projection says now, its interval."""
    suggestion, check = state.suggestion, state.verified
    if suggestion is None:
        return [page.paragraph("Nothing can be suggested before the first run has finished.")]
    intervals = suggestion.interval(LEVEL)
    defaults = state.settings.defaults if state.settings else {}
    share = state.importance
    head = ["HP", "suggested", "90% interval of the optimum", "default", "importance", "what it is"]
    if check is not None:
        head.insert(1, "verified at the target")
    rows = []
    for hp, value in sorted(suggestion.params.items(), key=lambda item: -share.get(item[0], 0.0)):
        low, high = intervals.get(hp, (None, None))
        row: list[object] = [
            hp,
            value,
            "–" if low is None else f"{page.number(low, 3)} to {page.number(high, 3)}",
            defaults.get(hp, "–"),
            "–" if hp not in share else "<1%" if 0 < share[hp] < 0.005 else f"{share[hp]:.0%}",
            _meaning(hp),
        ]
        if check is not None:
            row.insert(1, check.params.get(hp, "–"))
        rows.append(row)
    words = ABOUT["settings"] + ("" if check is None else " " + ABOUT["verified"])
    as_json = json.dumps(suggestion.to_json(), indent=2, default=str)
    return [
        page.paragraph(words, "quiet"),
        page.table(head, rows),
        page.details("The suggestion as JSON", page.preformatted(as_json)),
    ]


def _meaning(hp: str) -> str:
    try:
        kind, group = split_name(hp)
    except TransferError:  # a user's own name
        return ""
    if group is None:
        return KINDS[kind].meaning
    if group.startswith(DEPTH):
        return f"multiplier on {kind} at relative depth {group.removeprefix(DEPTH)}"
    return (
        f"multiplier on residual branch {group}" if kind == "residual" else f"multiplier on {kind} of {group}"
    )


def prediction(state: State) -> list[str]:
    """The prediction as it stood before the runs at the target, beside what they measured."""
    parts = []
    if not state.checks:
        parts.append(
            page.paragraph("No run at the target has been made yet, so there is nothing to compare with.")
        )
    if state.fit is not None and state.suggestion is not None:
        check = state.verified if state.verified and state.verified.scale == state.fit.target else None
        loss = state.suggestion.predicted_loss
        now = (loss.mean, *loss.interval(LEVEL))
        predicted = check.predicted if check is not None and check.predicted is not None else now
        shown = [check, *state.controls] if check is not None else []
        measured = [(c.purpose, c.name, c.loss) for c in shown if c.loss is not None]
        parts.append(
            page.figure(
                figures.draw_prediction(state.fit, predicted, measured, maximize=state.maximize),
                "Loss over the cost of a run, and at the target the prediction beside what was measured",
                ABOUT["prediction"] + ABOUT["now" if check is None else "before"],
            )
        )
    if state.checks:
        rows = []
        for c in state.checks:
            mean, low, high = c.predicted or ("–", None, None)
            inside = "–"
            if c.loss is not None and low is not None and high is not None:
                inside = "inside" if low <= c.loss <= high else "outside"
            interval = "–" if low is None else f"{low:.4f} to {high:.4f}"
            measured_loss = "–" if c.loss is None else c.loss
            rows.append(
                [
                    c.number,
                    c.name,
                    figures.scale_label(c.scale),
                    mean,
                    interval,
                    measured_loss,
                    inside,
                    c.outcome,
                ]
            )
        parts.append(page.paragraph("All runs at the target, in the order they were made:"))
        parts.append(
            page.table(
                ["run", "what", "scale", "predicted", "90% interval", "measured", "measured is", "outcome"],
                rows,
                digits=5,
            )
        )
    return parts


def landscape(state: State) -> list[str]:
    """Loss along each HP and the optimum's path."""
    if state.fit is None or not state.fit.hps:
        return [page.paragraph("No curve can be drawn before the first run has finished.")]
    parts = []
    hidden = len(state.fit.hps) - figures.MAX_PANELS
    if hidden > 0:
        parts.append(
            page.paragraph(f"The {figures.MAX_PANELS} most important HPs; {hidden} more are in the tables.")
        )
    drawing = figures.draw_landscape(state.fit, chosen=state.chosen, maximize=state.maximize)
    parts.append(
        page.figure(drawing, "A panel per HP: loss against its value at each scale", ABOUT["landscape"])
    )
    return parts


def drift_of_optimum(state: State) -> list[str]:
    """How far the optimum moves with scale."""
    if state.suggestion is None or not state.suggestion.drift:
        return [page.paragraph("No drift can be fitted before the first run has finished.")]
    share = state.importance
    drift = dict(sorted(state.suggestion.drift.items(), key=lambda item: -share.get(item[0], 0.0)))
    rows = [
        [
            hp,
            axis,
            d["mean"],
            _around(d["mean"], d["sd"]),
            d["prior_mean"],
            _around(d["prior_mean"], d["prior_sd"]),
        ]
        for hp, per_axis in drift.items()
        for axis, d in per_axis.items()
    ]
    head = [
        "HP",
        "per doubling of",
        "fitted, octaves",
        "90% interval",
        "prior, octaves",
        "90% interval of the prior",
    ]
    return [
        page.figure(
            figures.draw_drift(drift),
            "Drift of each HP's optimum per doubling of each axis, fitted and prior",
            ABOUT["drift"],
        ),
        page.details("The numbers", page.table(head, rows)),
    ]


def _around(mean: float, sd: float) -> str:
    half = figures.LEVEL_SD * sd
    return f"{mean - half:+.2f} to {mean + half:+.2f}"


def importance(state: State) -> list[str]:
    """Which HPs matter, per scale."""
    if state.fit is None or not state.fit.hps:
        return [page.paragraph("Importance is not known before the first run has finished.")]
    return [
        page.figure(
            figures.draw_importance(state.fit),
            "Share of each HP in the spread of the loss, per scale",
            ABOUT["importance"],
        ),
        page.paragraph(_nil_words(state)),
        page.paragraph(ABOUT["nil"], "quiet"),
    ]


def _nil_words(state: State) -> str:
    seen = [trial.distributions for trial in state.study.get_trials(deepcopy=False)]
    nil = sorted(nil_hps([r for r in state.runs if r.purpose == "search"], read_dimensions(seen, {})))
    if not nil:
        return "No HP is found to be nil."
    return f"Nil, and so not worth searching further: {', '.join(nil)}."


def divergence(state: State) -> list[str]:
    """Where runs diverge."""
    if not any(run.outcome is Outcome.DIVERGED for run in state.runs):
        return [page.paragraph("No run has diverged.")]
    hps = {hp for run in state.own for hp, value in run.params.items() if _is_positive(value)}
    figure = figures.draw_divergence(state.own, sorted(hps))
    return [page.figure(figure, "Which runs diverged, along each HP", ABOUT["divergence"])]


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def runs_and_compute(state: State) -> list[str]:
    """A row per scale: how its runs ended, what they cost."""
    if not state.own:
        return [page.paragraph("No run has been started yet.")]
    settings = state.settings
    scales: list[Scale | None] = list(dict.fromkeys(run.scale for run in state.own))
    scales.sort(
        key=lambda s: settings.cost(s) if settings and s is not None and s in settings.scales else -1.0
    )
    outcomes = [o for o in Outcome if any(run.outcome is o for run in state.own)]
    rows = []
    for scale in scales:
        here = [run for run in state.own if run.scale == scale]
        losses = [run.loss for run in here if run.loss is not None and run.purpose == "search"]
        best = (max if state.maximize else min)(losses) if losses else "–"
        rows.append(
            [
                "no scale stored" if scale is None else figures.scale_label(scale),
                *[sum(run.outcome is outcome for run in here) for outcome in outcomes],
                best,
                *_effort(settings, here),
            ]
        )
    total = ["all", *[sum(run.outcome is outcome for run in state.own) for outcome in outcomes], "–"]
    rows.append([*total, *_effort(settings, state.own)])
    head = [
        "scale",
        *outcomes,
        "best loss of the search",
        "search, target runs",
        "at the target, target runs",
        "time",
    ]
    parts = [page.table(head, rows)]
    if settings is not None and settings.budget is not None:
        budget = settings.budget / settings.cost(settings.target)
        parts.append(page.paragraph(f"Budget of the search, in runs at the target: {budget:.3g}.", "quiet"))
    parts.append(page.paragraph(ABOUT["effort"], "quiet"))
    hps = list(dict.fromkeys(hp for run in state.own for hp in run.params))
    every = [
        [
            run.number,
            "–" if run.scale is None else figures.scale_label(run.scale),
            run.purpose,
            run.outcome,
            "–" if run.loss is None else run.loss,
            *[run.params.get(hp, "–") for hp in hps],
        ]
        for run in state.own
    ]
    runs_head = ["run", "scale", "purpose", "outcome", "loss", *hps]
    parts.append(page.details(f"All {len(every)} runs", page.table(runs_head, every)))
    trials = state.study.get_trials(deepcopy=False)
    errors = [[t.number, t.user_attrs[ERROR_ATTR]] for t in trials if ERROR_ATTR in t.user_attrs]
    if errors:
        parts.append(
            page.details(f"What stopped {len(errors)} of them", page.table(["run", "error"], errors))
        )
    return parts


def _effort(settings: StudySettings | None, runs: Sequence[Run]) -> list[object]:
    time = _duration(sum(run.seconds or 0.0 for run in runs))
    if settings is None:
        return ["–", "–", time]
    unit = settings.cost(settings.target)
    checks = [r for r in runs if r.purpose != "search" and r.scale in settings.scales]
    at_target = sum(
        settings.cost(r.scale) for r in checks if r.scale is not None and r.outcome is Outcome.FINISHED
    )
    return [round(_search_effort(settings, runs), 3), round(at_target / unit, 3), time]


def _search_effort(settings: StudySettings, runs: Sequence[Run]) -> float:
    """Compute of the search in runs at the target."""
    known = [run for run in runs if run.scale in settings.scales]
    return spent(settings, known) / settings.cost(settings.target)


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds:.0f}\N{NO-BREAK SPACE}s"


def tensors(state: State, tensor_table: Callable[[Mapping[str, Any]], pd.DataFrame] | None) -> list[str]:
    """A row per tensor, under the HPs that are set at the target; nothing without HPs or a way to tell."""
    if tensor_table is None or state.chosen is None:
        return []
    table = tensor_table(state.chosen)
    return [
        page.paragraph(ABOUT["tensors"], "quiet"),
        page.details(
            f"All {len(table)} tensors",
            page.table(list(table.columns), table.astype(object).itertuples(index=False)),
        ),
    ]
