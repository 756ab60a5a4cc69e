"""Every run: how it ended and what it cost, per scale and one by one."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_bo.attributes import ERROR_ATTR
from transfer_bo.display.text import duration_text, scale_text
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.report import page
from transfer_bo.report.state import State
from transfer_bo.scale import Scale
from transfer_bo.search.budget import spent

__all__ = ["run_rows", "runs_and_compute", "search_effort"]

ABOUT_EFFORT = (
    "A stopped run counts as far as it got. Time is wall-clock inside the objective, summed over runs."
)


def runs_and_compute(state: State) -> list[str]:
    """A row per scale, the list of all runs, and the errors."""
    if not state.own:
        return [page.paragraph("No run has been started yet.")]

    parts = [_per_scale(state)]
    settings = state.settings
    if settings is not None and settings.budget is not None:
        budget = settings.budget / settings.cost(settings.target)
        parts.append(page.paragraph(f"Budget of the search, in runs at the target: {budget:.3g}.", "quiet"))
    parts.append(page.paragraph(ABOUT_EFFORT, "quiet"))

    hps = list(dict.fromkeys(hp for run in state.own for hp in run.params))
    rows = [[run.number, run.purpose, run.outcome, *row] for run, row in run_rows(state.own, hps)]
    head = ["run", "purpose", "outcome", "scale", "loss", *hps]
    parts.append(page.details(f"All {counted(len(rows), 'run')}", page.table(head, rows)))

    trials = state.study.get_trials(deepcopy=False)
    errors = [[t.number, t.user_attrs[ERROR_ATTR]] for t in trials if ERROR_ATTR in t.user_attrs]
    if errors:
        title = f"What stopped {len(errors)} of them"
        parts.append(page.details(title, page.table(["run", "error"], errors)))
    return parts


def run_rows(runs: Sequence[Run], hps: Sequence[str]) -> list[tuple[Run, list[object]]]:
    """Each run with its cells: scale, loss and HPs."""
    return [
        (run, [None if run.scale is None else scale_text(run.scale), run.loss, *map(run.params.get, hps)])
        for run in runs
    ]


def _per_scale(state: State) -> str:
    settings = state.settings
    outcomes = [outcome for outcome in Outcome if any(run.outcome is outcome for run in state.own)]

    def cost(scale: Scale | None) -> float:
        known = settings is not None and scale is not None and scale in settings.scales
        return settings.cost(scale) if settings and scale and known else -1.0

    rows = []
    for scale in sorted(dict.fromkeys(run.scale for run in state.own), key=cost):
        here = [run for run in state.own if run.scale == scale]
        losses = [run.loss for run in here if run.loss is not None and run.purpose == "search"]
        label = "no scale stored" if scale is None else scale_text(scale)
        best = (max if state.maximize else min)(losses) if losses else None
        rows.append([label, *_counts(here, outcomes), best, *_effort(settings, here)])
    rows.append(["all", *_counts(state.own, outcomes), None, *_effort(settings, state.own)])

    head = [
        *("scale", *outcomes, "best loss of the search"),
        *("search, target runs", "at the target, target runs", "time"),
    ]
    return page.table(head, rows)


def _counts(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> list[int]:
    return [sum(run.outcome is outcome for run in runs) for outcome in outcomes]


def _effort(settings: StudySettings | None, runs: Sequence[Run]) -> list[object]:
    """Compute of the search and of other runs, in runs at the target, and wall-clock time."""
    time = duration_text(sum(run.seconds or 0.0 for run in runs))
    if settings is None:
        return [None, None, time]

    checks = [run for run in runs if run.purpose != "search" and run.scale in settings.scales]
    finished = [run.scale for run in checks if run.outcome is Outcome.FINISHED and run.scale is not None]
    at_target = sum(settings.cost(scale) for scale in finished) / settings.cost(settings.target)
    return [round(search_effort(settings, runs), 3), round(at_target, 3), time]


def search_effort(settings: StudySettings, runs: Sequence[Run]) -> float:
    """Compute of the search, in runs at the target."""
    known = [run for run in runs if run.scale in settings.scales]
    return spent(settings, known) / settings.cost(settings.target)
