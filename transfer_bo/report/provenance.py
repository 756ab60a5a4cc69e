"""Where results come from: versions, seeds, the commit, and what the caller knows."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from transfer_bo.report import page
from transfer_bo.report.state import State

__all__ = ["provenance_table"]

VERSIONS = ("transfer-bo", "torch", "gpytorch", "botorch", "optuna", "numpy", "scipy")
"""Distributions whose versions are shown."""


def provenance_table(state: State, given: Mapping[str, object]) -> list[str]:
    """HTML: a row per name; texts of several lines below, each with its SHA-256 in the table.

    Args:
        state: What the report reads from the study.
        given: What the caller knows about the results' origin, name -> value.
    """
    known: dict[str, object] = {"study": state.study.study_name}
    if state.settings is not None:
        known["sampler's seed"] = state.settings.seed
        known["coordinates"] = state.settings.coordinates
    known["commit of transfer_bo"] = _commit()
    known["Python"] = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in VERSIONS:
        known[name] = importlib.metadata.version(name)

    long = {name: str(value) for name, value in given.items() if "\n" in str(value)}
    known |= {name: value for name, value in given.items() if name not in long}
    known |= {
        f"SHA-256 of {name}": hashlib.sha256(words.encode()).hexdigest() for name, words in long.items()
    }

    table = page.table(["what", "value"], [[name, str(value)] for name, value in known.items()])
    return [table, *(page.details(name, page.preformatted(words)) for name, words in long.items())]


def _commit() -> str:
    """The commit of the checkout that this package runs from, or that there is none."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie inside someone else's repository.
        git("ls-files", "--error-unmatch", here.name)
        changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return f"not a git checkout (version {importlib.metadata.version('transfer-bo')})"
