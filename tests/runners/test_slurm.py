"""Workers as Slurm jobs, with stand-ins for sbatch and scontrol on PATH."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import commands
from optuna.trial import TrialState

from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome, read_runs
from transfer_bo.runners.slurm import batch_script, submit
from transfer_bo.store.open_study import open_study
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]

SBATCH = """#!/bin/bash
echo "$@" >> calls
SLURM_JOB_ID=7 bash "$1" >> job.log 2>&1 &
echo $! > job.new && mv job.new job.pid
echo "Submitted batch job 7"
"""

SCONTROL = """#!/bin/bash
echo "scontrol $@" >> calls
SLURM_JOB_ID=7 bash "$SCRIPT" >> job.log 2>&1 &
echo $! > job.new && mv job.new job.pid
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the stand-ins on PATH, where they run jobs at once; what still runs is ended."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((tmp_path / "job.pid").read_text()), signal.SIGTERM)


def on_journal(write_study: WriteStudy, tokens: str = "512") -> Path:
    """A small study whose storage several machines can share."""
    path = write_study(*[("tokens = 512", f"tokens = {tokens}")] * 2, ("tokens = 1024", "tokens = 1_000_000"))
    with path.open("a") as file:
        file.write('\n[run]\nstorage = "journal:///study.log"\n')
    return path


def test_the_script_stops_the_worker_in_order(write_study: WriteStudy) -> None:
    """Directives, then options of the user's own, then the command; it is a valid shell script."""
    study = load_study_file(on_journal(write_study))

    script = batch_script(study, ["a study.toml"], 3, ["--partition=gpu"])

    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@90", "#SBATCH --array=0-2"} <= set(directives)
    assert "#SBATCH --partition=gpu" == directives[-1]
    assert "transfer_bo.cli worker 'a study.toml' &" in script
    assert 0 == subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode


def test_bad_input_is_one_sentence(
    write_study: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite, a wrong option, no sbatch, and one that refuses."""
    with pytest.raises(TransferError, match="SQLite"):
        submit(load_study_file(write_study()), [], 1, [])

    study = load_study_file(on_journal(write_study))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TransferError, match="partition"):
        submit(study, [], 1, ["partition"])
    with pytest.raises(TransferError, match=r"slurm\.sh"):
        submit(study, [], 1, [])
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(TransferError, match="invalid partition"):
        submit(study, [], 1, [])


@pytest.mark.slow  # a study of several trials, stopped and continued
@pytest.mark.timeout(600)
def test_a_preempted_job_is_queued_again_and_loses_nothing(write_study: WriteStudy, slurm: Path) -> None:
    """SIGTERM in the middle of a trial: it returns to the queue, the job runs again, the study ends."""
    path = on_journal(write_study, tokens="40_000")
    study_file = load_study_file(path)
    os.environ["SCRIPT"] = str(study_file.out / "slurm.sh")
    with commands(slurm) as command:
        shown, error = command("worker", str(path), "--slurm", "--sbatch=--time=1").communicate(timeout=120)
    assert ("Submitted batch job 7", "") == (shown.strip(), error)

    def states() -> Counter[TrialState]:
        with contextlib.suppress(Exception):  # there is no study yet
            return Counter(trial.state for trial in open_study(study_file).get_trials(deepcopy=False))
        return Counter()

    wait_until(lambda: states()[TrialState.RUNNING] and states()[TrialState.COMPLETE])
    first = int((slurm / "job.pid").read_text())
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: "scontrol requeue 7" in (slurm / "calls").read_text())
    wait_until(lambda: not is_alive(int((slurm / "job.pid").read_text())))

    runs = read_runs(open_study(study_file))
    print((slurm / "job.log").read_text())
    assert first != int((slurm / "job.pid").read_text())
    assert {Outcome.FINISHED, Outcome.PRUNED} >= {run.outcome for run in runs}
    assert list(range(len(runs))) == [run.number for run in runs]


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/status").read_text().partition("State:")[2][:4]
    return False


def wait_until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    """Wait for a condition; fails after some minutes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
