"""The command line `transfer-bo`, one module for each group of commands.

    init            init, schema
    study           run, verify, report, status
    dry_run         what `verify --dry-run` shows
    worker          worker, node
    suggest         suggest
    diagnose        diagnose
    plan            plan
    coord_check     coord-check
    trajectory      trajectory
    subset_check    subset-check
    common          the application, shared options, errors and interruptions
    parsing         values of options
    opened          the study that a command reads

Bad input ends with one sentence on standard error and exit code 2, Ctrl-C with 130. Options are checked, and
help and version printed, before any heavy import. Each module adds its commands to `common.app`, in the order
of the imports below, which is their order in the help.
"""

from transfer_bo.cli import init, study, worker, suggest, diagnose, plan  # isort: skip
from transfer_bo.cli import coord_check, trajectory, subset_check  # isort: skip
from transfer_bo.cli.common import app

__all__ = [
    "app",
    "coord_check",
    "diagnose",
    "init",
    "main",
    "plan",
    "study",
    "subset_check",
    "suggest",
    "trajectory",
    "worker",
]


def main() -> None:
    """Entry point of the `transfer-bo` command."""
    app(prog_name="transfer-bo")
