"""The answer: the headline, what to set at the target, and the prediction beside the measurement."""

from __future__ import annotations

import json

from transfer_bo.display.figures import draw_prediction
from transfer_bo.display.suggestion_text import comparison_sentences, searched_ranges
from transfer_bo.display.text import (
    LOSS_DIGITS,
    MISSING,
    UNDETERMINED,
    interval_text,
    number_text,
    scale_text,
    share_text,
)
from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome
from transfer_bo.report import page
from transfer_bo.report.compute import search_effort
from transfer_bo.report.state import Check, State
from transfer_bo.space import DEPTH, KINDS, split_name
from transfer_bo.verification.verdict import Verification

__all__ = ["headline", "prediction", "target_settings"]

LEVEL = 0.9
"""Of every interval in a report."""

ABOUT_SETTINGS = (
    "HPs as searched: under a parametrization these are base coordinates, and a grouped HP multiplies the "
    "plain one of its kind for the tensors of that group. The suggested value is the one with the least "
    "expected loss, which next to an asymmetric cliff is not the middle of the interval."
)
ABOUT_VERIFIED = (
    " “Verified” is what ran at the target; “suggested” also knows how that run ended, so it may differ."
)
ABOUT_PREDICTION = (
    "Left: every finished run of the search, the best of each rung outlined, and the fitted loss at each "
    "scale's optimum (dash); the axis is cut where runs with poor HPs would squeeze the rest. Right: "
)
PREDICTED_BEFORE = "the 90% interval that was predicted before the run, beside the measured losses."
PREDICTED_NOW = "the 90% interval as predicted now."


def headline(state: State) -> str:
    """Verdict, key numbers and warnings, as HTML."""
    target = "" if state.settings is None else f"; target: {scale_text(state.settings.target)}"
    parts = [page.paragraph(f"Study {state.study.study_name!r}{target}", "quiet")]
    check, suggestion = state.verified, state.suggestion
    cards: list[tuple[str, str]] = []

    if check is not None and check.predicted is not None:
        verification = _verification(check, state)
        parts.append(page.verdict(_kind(verification), verification.text))
        cards.append(("predicted loss, before the run", _estimate(*check.predicted)))
        cards.append(("measured", _loss(check)))
        cards += [(f"control: {control.name}", _loss(control)) for control in state.controls]
    elif suggestion is not None:
        words = "The projection has not been verified: no run of a suggestion at the target has ended yet."
        parts.append(page.verdict("", words))
        loss = suggestion.predicted_loss
        cards.append(("predicted loss at the target", _estimate(loss.mean, *loss.interval(LEVEL))))
    else:
        parts.append(page.verdict("", f"There is no projection yet. {state.missing}"))

    if state.settings is not None:
        cards.append(("tuning compute", f"{search_effort(state.settings, state.runs):.2f} target runs"))
    finished = sum(run.outcome is Outcome.FINISHED for run in state.own)
    cards.append(("runs finished / all", f"{finished} / {len(state.own)}"))
    parts.append(page.cards(cards))

    if suggestion is not None and suggestion.warnings:
        parts.append(page.warnings(suggestion.warnings))
    return "".join(parts)


def _estimate(mean: float, low: float, high: float) -> str:
    mean_text, low_text, high_text = (number_text(value, LOSS_DIGITS) for value in (mean, low, high))
    return f"{mean_text}  [{low_text}, {high_text}]"


def _loss(check: Check) -> str:
    return "no loss" if check.loss is None else number_text(check.loss, LOSS_DIGITS)


def _verification(check: Check, state: State) -> Verification:
    mean, low, high = check.predicted or (float("nan"),) * 3
    return Verification(
        target=check.scale,
        measured=check.loss,
        predicted_mean=mean,
        interval=(low, high),
        control={control.name: control.loss for control in state.controls},
        level=LEVEL,
        maximize=state.maximize,
    )


def _kind(verification: Verification) -> str:
    """Style: good if the interval held and no control did better, bad if it did not hold, else mixed."""
    if verification.measured is None or not verification.inside:
        return "bad"
    sign = -1 if verification.maximize else 1
    beaten = any(
        loss is not None and sign * loss < sign * verification.measured
        for loss in verification.control.values()
    )
    return "mixed" if beaten else "good"


def target_settings(state: State) -> list[str]:
    """A row per HP: what was run at the target, what the projection says now, its interval."""
    suggestion, check = state.suggestion, state.verified
    if suggestion is None:
        return [page.paragraph("Nothing can be suggested before the first run has finished.")]

    intervals = {hp: interval_text(*ends) for hp, ends in suggestion.interval(LEVEL).items()}
    ranges = searched_ranges(state.study)
    defaults = state.settings.defaults if state.settings else {}
    rows = []
    for hp, value in sorted(suggestion.params.items(), key=lambda item: -state.importance.get(item[0], 0.0)):
        row: list[object] = [
            hp,
            value,
            UNDETERMINED if hp in suggestion.undetermined else intervals.get(hp, ""),
            interval_text(*ranges.get(hp, (None, None))),
            defaults.get(hp),
            share_text(state.importance.get(hp)),
            _meaning(hp),
        ]
        if check is not None:
            row.insert(1, check.params.get(hp))
        rows.append(row)

    head = [
        *("HP", "suggested", "90% interval of the optimum", "searched"),
        *("default", "importance", "what it is"),
    ]
    if check is not None:
        head.insert(1, "verified at the target")
    as_json = json.dumps(suggestion.to_json(), indent=2, default=str)
    return [
        page.paragraph(ABOUT_SETTINGS + ("" if check is None else ABOUT_VERIFIED), "quiet"),
        page.table(head, rows),
        *map(page.paragraph, comparison_sentences(suggestion)),
        page.details("The suggestion as JSON", page.preformatted(as_json)),
    ]


def _meaning(hp: str) -> str:
    """What an HP of a known kind does; empty for a name of the user's own."""
    try:
        kind, group = split_name(hp)
    except TransferError:
        return ""
    if group is None:
        return KINDS[kind].meaning
    if group.startswith(DEPTH):
        return f"multiplier on {kind} at relative depth {group.removeprefix(DEPTH)}"
    if kind == "residual":
        return f"multiplier on residual branch {group}"
    if kind == "forward":
        return f"multiplier at {group} in the forward pass"
    return f"multiplier on {kind} of {group}"


def prediction(state: State) -> list[str]:
    """The prediction as it stood before the runs at the target, beside what they measured."""
    parts = []
    if not state.checks:
        words = "No run at the target has been made yet, so there is nothing to compare with."
        parts.append(page.paragraph(words))

    if state.fit is not None and state.suggestion is not None:
        check = state.verified if state.verified and state.verified.scale == state.fit.target else None
        loss = state.suggestion.predicted_loss
        predicted = (loss.mean, *loss.interval(LEVEL))
        if check is not None and check.predicted is not None:
            predicted = check.predicted
        shown = [check, *state.controls] if check is not None else []
        measured = [(c.purpose, c.name, c.loss) for c in shown if c.loss is not None]
        parts.append(
            page.figure(
                draw_prediction(state.fit, predicted, measured, maximize=state.maximize),
                "Loss over the cost of a run, and at the target the prediction beside what was measured",
                ABOUT_PREDICTION + (PREDICTED_NOW if check is None else PREDICTED_BEFORE),
            )
        )

    if state.checks:
        head = ["run", "what", "scale", "predicted", "90% interval", "measured", "measured is", "outcome"]
        rows = [_check_row(check) for check in state.checks]
        parts.append(page.paragraph("All runs at the target, in the order they were made:"))
        parts.append(page.table(head, rows, digits=LOSS_DIGITS))
    return parts


def _check_row(check: Check) -> list[object]:
    mean, low, high = check.predicted or (None, None, None)
    inside = MISSING
    if check.loss is not None and low is not None and high is not None:
        inside = "inside" if low <= check.loss <= high else "outside"
    return [
        check.number,
        check.name,
        scale_text(check.scale),
        mean,
        interval_text(low, high, LOSS_DIGITS),
        check.loss,
        inside,
        check.outcome,
    ]
