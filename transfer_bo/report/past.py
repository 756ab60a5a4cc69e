"""What a report says of past studies, whose runs were given to the study as prior data."""

from __future__ import annotations

from transfer_bo.display import figures
from transfer_bo.records import Run
from transfer_bo.report import page
from transfer_bo.report.state import State

__all__ = ["past_studies"]

ABOUT = (
    "These runs were made in other studies. The fit gives each past study a level of its own, so its losses "
    "are not compared with this study's, and learns how many octaves its optimum lies off: near 0 its runs "
    "count like this study's own, at several octaves they hardly count. Runs whose HPs have no place on this "
    "study's scales are not fitted."
)


def past_studies(state: State) -> list[str]:
    """A row per past study: its runs and what the fit makes of them; nothing if there are none."""
    by_name: dict[str, list[Run]] = {}
    for run in state.runs:
        if run.source is not None:
            by_name.setdefault(run.source, []).append(run)
    if not by_name:
        return []
    fitted = {} if state.fit is None else state.fit.past()
    rows = []
    for name, runs in by_name.items():
        known = fitted.get(name)
        words = ["–", "–"] if known is None else [int(known["runs"]), round(known["shift"], 2)]
        rows.append([f"past: {name}", len(runs), *words])
    lists = [page.details(f"All {len(of)} runs of past: {n}", _runs(of)) for n, of in by_name.items()]
    return [
        page.table(["study", "runs", "fitted", "its optimum lies off by, octaves"], rows),
        page.paragraph(ABOUT, "quiet"),
        *lists,
    ]


def _runs(runs: list[Run]) -> str:
    hps = list(dict.fromkeys(hp for run in runs for hp in run.params))
    every = [
        [
            "–" if run.scale is None else figures.scale_label(run.scale),
            "–" if run.loss is None else run.loss,
            *[run.params.get(hp, "–") for hp in hps],
        ]
        for run in runs
    ]
    return page.table(["scale", "loss", *hps], every)
