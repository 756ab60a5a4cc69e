"""The command line: `transfer-bo run | worker | suggest | verify | report | status | plan | ...`.

Bad input ends with one sentence on standard error and exit code 2; Ctrl-C with 130. Heavy imports wait until
a command needs them, so that help and mistakes in a study file are quick. A file per group of commands; each
adds its own to `common.app`, in the order of the imports below.
"""

from transfer_bo.cli import study, worker, suggest, coord_check, diagnose, plan  # isort: skip
from transfer_bo.cli.common import app

__all__ = ["app", "coord_check", "diagnose", "main", "plan", "study", "suggest", "worker"]


def main() -> None:
    """Entry point of the `transfer-bo` command."""
    app()
