"""Workers as Slurm jobs: a batch script that runs `transfer-bo worker`, stops it in order, and runs again.

Slurm sends SIGTERM to the script before the time limit and at preemption. The script passes it on, the
worker writes a checkpoint and returns its trial to the queue (exit code `worker.STOPPED`), and the job is
queued again under its number.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence

from transfer_bo.errors import TransferError
from transfer_bo.runners.torchrun import ranks_here
from transfer_bo.runners.worker import STOPPED
from transfer_bo.study_file import StudyFile

__all__ = ["batch_script", "submit"]

NOTICE_SECONDS = 90
"""How long before the time limit Slurm sends SIGTERM: six times what workers may take to stop."""

_SCRIPT = """\
#!/bin/bash
{directives}

worker=
trap 'test -n "$worker" && kill -TERM "$worker"' TERM

{command} &
worker=$!
wait "$worker"
code=$?
while kill -0 "$worker" 2>/dev/null; do  # a signal has ended the wait, not the worker
  wait "$worker"
  code=$?
done

if test "$code" -eq {stopped}; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def batch_script(study_file: StudyFile, arguments: Sequence[str], jobs: int, options: Sequence[str]) -> str:
    """The batch script of one job, or of an array of jobs.

    Args:
        study_file: The study that is worked on.
        arguments: What follows `transfer-bo worker`.
        jobs: Number of jobs that work at a time.
        options: Options of sbatch, which overrule those here.
    """
    run, out = study_file.run, study_file.out
    defaults = [
        f"--job-name=transfer-bo-{study_file.name}",
        f"--output={out / 'slurm-%j.log'}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{NOTICE_SECONDS}",
        "--ntasks=1",
        f"--cpus-per-task={run.workers * ranks_here(study_file) * run.threads}",
        *([f"--array=0-{jobs - 1}"] if jobs > 1 else []),
    ]
    command = [sys.executable, "-m", "transfer_bo.cli", "worker", *arguments]
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {option}" for option in [*defaults, *options]),
        command=shlex.join(command),
        stopped=STOPPED,
    )


def submit(study_file: StudyFile, arguments: Sequence[str], jobs: int, options: Sequence[str]) -> str:
    """Write the batch script into the study's folder and hand it to sbatch.

    Args:
        study_file: The study that is worked on.
        arguments: What follows `transfer-bo worker`.
        jobs: Number of jobs that work at a time.
        options: Options of sbatch.

    Returns:
        What sbatch printed.

    Raises:
        TransferError: If the storage is a file for one machine, an option is none, or sbatch fails or is
        missing.
    """
    if study_file.storage_url.startswith("sqlite:"):
        raise TransferError(
            "run.storage is SQLite, which serves one machine only; with --slurm use "
            'run.storage = "journal:///shared/study.log" or PostgreSQL.'
        )
    wrong = next((option for option in options if not option.startswith("-") or "\n" in option), None)
    if wrong is not None:
        raise TransferError(
            f"--sbatch {wrong!r} is not an option of sbatch; write e.g. --sbatch=--time=04:00:00."
        )

    script = study_file.out / "slurm.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(batch_script(study_file, arguments, jobs, options))
    try:
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise TransferError(
            f"There is no sbatch on this machine; submit the script {script} where Slurm is."
        ) from None
    if done.returncode:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise TransferError(f"sbatch refused {script}: {reason}; change its options with --sbatch=OPTION.")
    return done.stdout.strip()
