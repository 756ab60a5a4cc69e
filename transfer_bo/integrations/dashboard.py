"""The suggestion as a note of a study in optuna-dashboard (`pip install optuna-dashboard`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from transfer_bo.errors import TransferError

__all__ = ["save_note"]

_NOTE = """\
# What to set at the target

```text
{suggestion}
```

Trials of all rungs are in this study, and losses of different rungs are not comparable. The panels history,
best trial, importance, slice, contour, rank and empirical distribution mix rungs; the trials, the timeline
and each intermediate curve are right as they are. `transfer-bo report` has the figures for each rung.
"""


def save_note(study: Any, suggestion: Any) -> None:
    """Show a suggestion as the study's note in optuna-dashboard; a note that is there is replaced.

    Args:
        study: An Optuna study in a storage that optuna-dashboard serves.
        suggestion: What `suggest` returned for it.

    Raises:
        TransferError: if optuna-dashboard is not installed.
    """
    if find_spec("optuna_dashboard") is None:
        raise TransferError("optuna-dashboard is not installed; pip install optuna-dashboard.")
    import optuna_dashboard

    optuna_dashboard.save_note(study, _NOTE.format(suggestion=suggestion))
