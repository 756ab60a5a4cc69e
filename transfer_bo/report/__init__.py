"""The report of a study: one HTML file with everything in it, at any moment of the study.

    report              the whole page; also `transfer_bo.report(study, path)`, so this module can be called
    write_report        the same under its older name
    tensor_settings     what each tensor gets at the target, for the page's last table

One module per group of sections: `results` (headline, what to set, prediction against measurement),
`fitted_landscape` (loss along each HP, drift, importance, divergence), `directions`, `source_studies`,
`compute`, `tensors` and `provenance`. `state` reads the study, `page` writes HTML. Where something is not
there yet (no finished run, no verification), the section says so. Losses are in the unit of the study's
objective, intervals hold 90%, compute is counted in runs at the target.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transfer_bo.errors import StudyError, TransferError
from transfer_bo.report import page
from transfer_bo.report.compute import runs_and_compute
from transfer_bo.report.directions import directions
from transfer_bo.report.fitted_landscape import divergence, drift_of_optimum, importance, landscape
from transfer_bo.report.provenance import provenance_table
from transfer_bo.report.results import headline, prediction, target_settings
from transfer_bo.report.source_studies import source_studies
from transfer_bo.report.state import read_state
from transfer_bo.report.tensors import tensor_settings, tensors
from transfer_bo.surrogate.threads import one_thread

if TYPE_CHECKING:
    import pandas as pd

    from transfer_bo.diagnostics.widths import WidthComparison
    from transfer_bo.projection import Projection

__all__ = ["report", "tensor_settings", "write_report"]


@one_thread()
def report(
    study: Any,
    path: str | Path = "report.html",
    *,
    title: str | None = None,
    provenance: Mapping[str, object] | None = None,
    tensor_table: Callable[[Mapping[str, Any]], pd.DataFrame] | None = None,
    fit: Projection | None = None,
    trajectories: WidthComparison | None = None,
) -> Path:
    """Write the report of a study, whatever state it is in.

    Args:
        study: The Optuna study.
        path: The HTML file; its folder is made if needed, an older report is replaced.
        title: Title of the page; the study's name without one.
        provenance: Where the results come from, name -> value, e.g. {"storage": url, "study file": its text};
            a text of several lines is shown as it is, with its SHA-256. Versions, the sampler's seed and the
            commit of this package are added. Passwords in addresses are masked.
        tensor_table: From HPs to the settings of each tensor at the target, a row per tensor, e.g. by
            `tensor_settings`; it is called with the HPs that were verified, or else with those suggested.
        fit: A fit of this study, if there is one already; otherwise it is fitted here.
        trajectories: Directions of the updates compared over widths, for a section of its own.

    Returns:
        The path, absolute.

    Raises:
        StudyError: If `study` is no Optuna study.
        TransferError: If the file cannot be written.
    """
    if not hasattr(study, "get_trials"):
        raise StudyError(f"A report is made of an Optuna study, but study is {study!r}; load it first.")
    state = read_state(study, fit)
    parts = [
        page.section("settings", "What to set at the target", *target_settings(state)),
        page.section("prediction", "Predicted against measured", *prediction(state)),
        page.section("landscape", "Loss against each HP over scale", *landscape(state)),
        page.section("drift", "Drift of the optimum", *drift_of_optimum(state)),
        page.section("importance", "Importance", *importance(state)),
        page.section("divergence", "Where runs diverge", *divergence(state)),
        page.section("directions", "Directions of the updates", *directions(trajectories)),
        page.section("sources", "Source studies", *source_studies(state)),
        page.section("compute", "Runs and compute", *runs_and_compute(state)),
        page.section("tensors", "Every tensor", *tensors(state, tensor_table)),
        page.section("provenance", "Where this comes from", *provenance_table(state, provenance or {})),
    ]
    text = page.page(title or study.study_name, headline(state), parts)

    path = Path(path).absolute()
    unfinished = path.with_name(path.name + ".part")  # a reader never meets half a report
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise TransferError(
            f"The report cannot be written to {path} ({error.strerror}); name another file."
        ) from None
    return path


write_report = report


class _CallableModule(ModuleType):
    """`transfer_bo.report` is the function until this package is imported, then the package: call either."""

    __call__ = staticmethod(report)


sys.modules[__name__].__class__ = _CallableModule
