"""The source studies, whose runs were given to the study as prior data."""

from __future__ import annotations

from transfer_bo.quantities import counted
from transfer_bo.records import Run
from transfer_bo.report import page
from transfer_bo.report.compute import run_rows
from transfer_bo.report.state import State

__all__ = ["source_studies"]

ABOUT = (
    "These runs were made in other studies. The fit gives each source study a level of its own, so its "
    "losses are not compared with this study's, and learns by how many octaves its optimum may differ (the "
    "standard deviation of its displacement): near 0 its "
    "runs count like this study's own, at several octaves they hardly count. Runs whose HPs have no place on "
    "this study's scales are not fitted."
)


def source_studies(state: State) -> list[str]:
    """A row per source study: its runs and what the fit makes of them; nothing if there are none."""
    by_name: dict[str, list[Run]] = {}
    for run in state.runs:
        if run.source is not None:
            by_name.setdefault(run.source, []).append(run)
    if not by_name:
        return []

    fitted = {} if state.fit is None else state.fit.sources()
    rows: list[list[object]] = []
    for name, runs in by_name.items():
        known = fitted.get(name)
        result = [None, None] if known is None else [int(known["runs"]), round(known["shift"], 2)]
        rows.append([name, len(runs), *result])
    lists = [
        page.details(f"All {counted(len(runs), 'run')} of {name}", _runs(runs))
        for name, runs in by_name.items()
    ]
    return [
        page.table(["source study", "runs", "fitted", "its optimum lies off by, octaves"], rows),
        page.paragraph(ABOUT, "quiet"),
        *lists,
    ]


def _runs(runs: list[Run]) -> str:
    hps = list(dict.fromkeys(hp for run in runs for hp in run.params))
    return page.table(["scale", "loss", *hps], [row for _, row in run_rows(runs, hps)])
