"""Trials in several processes, on one node or several, started by torchrun.

A trial belongs to the worker that took it. With `run.nodes` > 1 each other node runs `transfer-bo node`,
which waits at the rendezvous for the next trial, lends its processes to it, and waits again. These nodes need
no storage: the ranks beside the worker read what is to be trained, send it to the others, and report.

If a process dies, all others end within seconds, and the trial returns to the queue; if a machine falls
silent, after `run.rank_timeout`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_bo.errors import StudyFileError, WorkerError
from transfer_bo.runners.external_program import CommandError, Program

if TYPE_CHECKING:
    from transfer_bo.study_file import StudyFile

__all__ = ["RDZV_ENDPOINT", "endpoint_of", "no_rendezvous", "ranks_here", "serve_node", "torchrun"]

RDZV_ENDPOINT = "TRANSFER_BO_RDZV_ENDPOINT"
"""Environment variable that replaces `run.rdzv_endpoint`: batch jobs learn their hosts when they start."""

_NO_RENDEZVOUS = ("RendezvousTimeoutError", "RendezvousConnectionError")
"""What torchrun writes when too few nodes have come in time, or nobody was there."""


def ranks_here(study_file: StudyFile) -> int:
    """Processes of a trial that run on one node."""
    return study_file.run.ranks // study_file.run.nodes


def endpoint_of(study_file: StudyFile) -> str | None:
    """Where nodes meet, host:port; None for trials on one node.

    Raises:
        StudyFileError: If there are several nodes and no place to meet.
    """
    run = study_file.run
    endpoint = os.environ.get(RDZV_ENDPOINT) or run.rdzv_endpoint
    if run.nodes == 1:
        return None
    if not endpoint or not endpoint.rpartition(":")[2].isdigit():
        raise StudyFileError(
            f"{study_file.path}: run.rdzv_endpoint = {endpoint!r}: with run.nodes = {run.nodes} set it (or "
            f'the environment variable {RDZV_ENDPOINT}) to "HOST:PORT" of the machine with the worker.'
        )
    return endpoint


def torchrun(study_file: StudyFile, *, is_host: bool = True) -> Program:
    """The trainer in several processes of this machine; if one dies, all end.

    Args:
        study_file: Says how many processes and nodes.
        is_host: Whether the rendezvous is here, where the worker is.
    """
    run, endpoint = study_file.run, endpoint_of(study_file)
    command = [sys.executable, "-m", "torch.distributed.run", "--no-python"]
    if endpoint is None:
        command += ["--standalone"]
    else:
        seconds = round(run.rank_timeout)
        # Only the host must be there when the others knock; these wait for it as long as for each other.
        settings = f"join_timeout={seconds},read_timeout={seconds},is_host={is_host}"
        command += [f"--nnodes={run.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={study_file.name}"]
        command += [f"--rdzv-endpoint={endpoint}", f"--rdzv-conf={settings}", "--max-restarts=0"]
    command += [f"--nproc-per-node={ranks_here(study_file)}"]
    command += [sys.executable, "-m", "transfer_bo.runners.torchrun_entry"]
    return Program(command, shell=False, env={}, folder=Path.cwd())


def no_rendezvous(error: CommandError, study_file: StudyFile) -> WorkerError | None:
    """What to tell the user if a trial did not begin because nodes are missing; None for another error."""
    run = study_file.run
    if run.nodes == 1 or not any(word in str(error) for word in _NO_RENDEZVOUS):
        return None
    others = "the other machine" if run.nodes == 2 else f"{run.nodes - 1} other machines"
    return WorkerError(
        f"run.nodes = {run.nodes}: not all nodes came to {endpoint_of(study_file)} within "
        f"run.rank_timeout = {run.rank_timeout:g} s; start {study_file.command_line('node')} on {others}."
    )


def serve_node(study_file: StudyFile, note: Callable[[str], None]) -> int:
    """Lend this machine's processes to one trial after the other, until none comes for `run.rank_timeout`.

    Args:
        study_file: The study, with several nodes.
        note: Shows a line to the user.

    Returns:
        How many trials were served, those that were interrupted included.

    Raises:
        StudyFileError: If the study's trials run on one node.
        WorkerError: If no trial has come at all, or the processes cannot be started.
    """
    if study_file.run.nodes == 1:
        raise study_file.error("run.nodes", "its trials run on one node; set it to the number of nodes.")
    endpoint = endpoint_of(study_file)
    program = torchrun(study_file, is_host=False)
    environment = {"OMP_NUM_THREADS": str(study_file.run.threads), **os.environ}
    n_trials = 0

    while True:
        with tempfile.TemporaryFile("w+") as errors:
            with program.started({}, environment, errors) as process:
                code = process.wait()
            errors.seek(0)
            written = errors.read()

        if code and any(word in written for word in _NO_RENDEZVOUS):
            break
        n_trials += 1
        note(f"A trial has ended here (exit code {code}); waiting for the next one at {endpoint}.")

    seconds = f"{study_file.run.rank_timeout:g}"
    if n_trials == 0:
        raise WorkerError(
            f"No trial has come to {endpoint} within run.rank_timeout = {seconds} s; start the search, a "
            "worker or the verification there, or set it higher."
        )
    note(f"No further trial has come to {endpoint} within {seconds} s; this node is done.")
    return n_trials
