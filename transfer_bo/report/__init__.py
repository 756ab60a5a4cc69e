"""The report of a study: one HTML file with everything in it, at any moment of the study.

What is not there yet (no finished run, no verification) is said in words. Losses are in the unit of the
study's objective, intervals hold 90%, compute is counted in runs at the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer_bo.report import page, sections
from transfer_bo.report.past import past_studies
from transfer_bo.report.provenance import provenance_table
from transfer_bo.report.state import read_state
from transfer_bo.report.tensors import tensor_settings

if TYPE_CHECKING:
    import pandas as pd

    from transfer_bo.projection import Projection

__all__ = ["tensor_settings", "write_report"]


def write_report(
    study: Any,
    path: str | Path,
    *,
    title: str,
    provenance: Mapping[str, object] | None = None,
    tensor_table: Callable[[Mapping[str, Any]], pd.DataFrame] | None = None,
    fit: Projection | None = None,
) -> Path:
    """Write the report of a study, whatever state it is in.

    Args:
        study: the Optuna study.
        path: of the HTML file; its folder is made if needed, an older report is replaced.
        title: of the page.
        provenance: where the results come from, name -> value, e.g. {"storage": url, "study file": its text};
            a text of several lines is shown as it is, with its SHA-256. Versions, the sampler's seed and the
            commit of this package are added. Passwords in URLs are left out.
        tensor_table: HPs -> what each tensor gets at the target under them, a row per tensor, e.g. by
            `tensor_settings`; it is called with what was verified, or else with the suggestion.
        fit: a fit of this study, if there is one already; otherwise it is fitted here.

    Returns:
        The path, absolute.
    """
    state = read_state(study, fit)
    parts = [
        page.section("settings", "What to set at the target", *sections.target_settings(state)),
        page.section("prediction", "Predicted against measured", *sections.prediction(state)),
        page.section("landscape", "Loss against each HP over scale", *sections.landscape(state)),
        page.section("drift", "Drift of the optimum", *sections.drift_of_optimum(state)),
        page.section("importance", "Importance", *sections.importance(state)),
        page.section("divergence", "Where runs diverge", *sections.divergence(state)),
        page.section("past", "Past studies", *past_studies(state)),
        page.section("compute", "Runs and compute", *sections.runs_and_compute(state)),
        page.section("tensors", "Every tensor", *sections.tensors(state, tensor_table)),
        page.section("provenance", "Where this comes from", *provenance_table(state, provenance or {})),
    ]
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")  # a reader never meets half a report
    unfinished.write_text(page.page(title, sections.headline(state), parts), encoding="utf-8")
    unfinished.replace(path)
    return path
