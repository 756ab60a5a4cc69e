"""What to set on the large model, before its one expensive run.

`import transfer_bo` is light: a name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from transfer_bo.deprecation import find_moved_modules

if TYPE_CHECKING:
    from transfer_bo.errors import Diverged, TransferError
    from transfer_bo.parametrization import parametrize
    from transfer_bo.projection import Suggestion, suggest
    from transfer_bo.report import report
    from transfer_bo.run_table import suggest_from_runs
    from transfer_bo.run_table.warm_start import add_past_runs
    from transfer_bo.runners.objective import Outcome, objective
    from transfer_bo.sampler import TransferSampler
    from transfer_bo.scale import Ladder, Scale
    from transfer_bo.search.pruner import RungPruner
    from transfer_bo.space import HP, Space
    from transfer_bo.verification.running import verify

__version__ = "0.1.0"

find_moved_modules()

_HOME = {
    "Diverged": "errors",
    "TransferError": "errors",
    "add_past_runs": "run_table.warm_start",
    "parametrize": "parametrization",
    "Suggestion": "projection",
    "suggest": "projection",
    "report": "report",
    "suggest_from_runs": "run_table",
    "Outcome": "runners.objective",
    "objective": "runners.objective",
    "verify": "verification.running",
    "TransferSampler": "sampler",
    "Ladder": "scale",
    "Scale": "scale",
    "RungPruner": "search.pruner",
    "HP": "space",
    "Space": "space",
}

__all__ = [
    "HP",
    "Diverged",
    "Ladder",
    "Outcome",
    "RungPruner",
    "Scale",
    "Space",
    "Suggestion",
    "TransferError",
    "TransferSampler",
    "add_past_runs",
    "objective",
    "parametrize",
    "report",
    "suggest",
    "suggest_from_runs",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'transfer_bo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"transfer_bo.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
