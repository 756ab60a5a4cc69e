"""Kill workers and restart the database while a study runs, and count what is lost: `python chaos.py --help`.

Worker processes run short trials that write a checkpoint at every step. Every so often a random worker is
killed with signal 9 and a new one starts; the database is restarted twice, once as if it had crashed. Every
result that a worker stored is noted in a file of its own; at the end the study must hold each
exactly once. Workers take each other for machines of their own, so that the dead are found by their silence
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from postgres import Cluster, cluster, free_port

import transfer_bo as tb
from transfer_bo.attributes import OWNER_LOSSES_ATTR, TOKEN_ATTR
from transfer_bo.records import Outcome, read_run
from transfer_bo.runners.objective import objective
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.sampler import TransferSampler
from transfer_bo.store.backends import open_storage
from transfer_bo.store.owner import Owner

LOADED = [  # once, before the workers are forked; by name, for a script itself is not preloaded
    "transfer_bo.runners.worker_loop",
    "transfer_bo.store.open_study",
    "transfer_bo.search.policy",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "psycopg",
]
STUDY = "chaos"
STEPS = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much chaos."""

    storage: str
    trials: int
    workers: int = 8
    seconds: float = 1.2
    """Of a trial."""
    kill_every: float = 1.0
    """Seconds between two kills."""
    kill_trials: float = 0.0
    """Trials that must have ended between two kills: on a busy machine workers die faster than they start."""
    grace: float = 5.0
    """Seconds of silence after which a trial is taken for dead."""
    most_kills: int = 1_000_000
    """No more kills than these, so that the end does not depend on how fast a busy machine starts workers."""
    restarts: int = 0
    """Of the database, evenly over the trials; odd ones as a crash."""
    away: float = 1.0
    """How long the database stays away, in seconds."""
    patience: float = 120.0
    """After which the whole thing is taken for stuck, beyond the time it should take."""


@dataclasses.dataclass
class Count:
    """What came out."""

    trials: int = 0
    finished: int = 0
    preempted: int = 0
    retried: int = 0
    lost: int = 0
    twice: int = 0
    stuck: int = 0
    kills: int = 0
    restarts: int = 0
    steps_repeated: int = 0
    seconds: float = 0.0
    ended: bool = False


def _sampler() -> TransferSampler:
    ladder = tb.Ladder([tb.Scale(width=16, tokens=1e6), tb.Scale(width=32, tokens=1e6)])
    # Start-up draws only: a surrogate of hundreds of trials would measure something else.
    return TransferSampler(
        ladder=ladder, target=tb.Scale(width=256, tokens=1e7), seed=0, n_startup_trials=10**9
    )


def loss_of(x: float) -> float:
    """What a trial is to find out."""
    return (x - 0.3) ** 2 + 1.0


def run_worker(url: str, folder: Path, plan: Plan) -> None:
    """One worker process, until the study is over."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sys.stderr = (folder / "workers.log").open("a", buffering=1)
    here = Owner.here()
    owner = Owner(f"machine-{here.id}", here.pid, here.id)
    study = optuna.load_study(
        study_name=STUDY, storage=open_storage(url, create=False, owner=owner), sampler=_sampler()
    )
    ladder = study.sampler._ladder  # type: ignore[attr-defined]

    def train(trial: optuna.Trial) -> float:
        ladder.suggest(trial)
        x = trial.suggest_float("x", 1e-3, 1.0, log=True)
        file = folder / f"{trial.number}.json"
        done = json.loads(file.read_text())["step"] if file.exists() else 0
        for step in range(done + 1, STEPS + 1):
            time.sleep(plan.seconds / STEPS)
            _note(folder / "steps", f"{trial.number} {step}")
            fresh = file.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps({"step": step}))
            fresh.replace(file)
            if step % 4 == 0:
                trial.report(loss_of(x), step=1000 * step // STEPS)
        return loss_of(x)

    def is_over(trials: list[FrozenTrial]) -> bool:
        return sum(read_run(trial).outcome is not Outcome.PREEMPTED for trial in trials) >= plan.trials

    def after(trial: FrozenTrial) -> None:
        _note(folder / "results", f"{trial.number} {trial.value!r}")

    options = WorkerOptions(owner=owner, on_end=after, beat=1.0, grace=plan.grace)
    work(study, objective(train), is_over=is_over, options=options)


def _note(file: Path, line: str) -> None:
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


@contextlib.contextmanager
def storage_of(kind: str, folder: Path) -> Iterator[tuple[str, Cluster | None]]:
    """An address of the kind, and the server that can be restarted."""
    if kind in ("sqlite", "journal"):
        yield f"{kind}:///{folder / 'study.db'}", None
        return
    with cluster() as server:
        if kind == "postgresql":
            yield server.url, server
            return
        port = free_port()
        code = (
            "import sys, optuna; from transfer_bo.store.backends import connect_backend\n"
            f"optuna.storages.run_grpc_proxy_server(connect_backend({server.url!r}, create=True), "
            f"port={port})"
        )
        with (folder / "proxy.log").open("w") as log:
            proxy = subprocess.Popen([sys.executable, "-c", code], stderr=log)
        try:
            yield f"grpc://localhost:{port}", server
        finally:
            proxy.kill()
            proxy.wait()


def run(plan: Plan, say: Callable[[str], None] = lambda line: None) -> Count:
    """Carry out a plan."""
    count = Count()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    chance = random.Random(0)
    with (
        tempfile.TemporaryDirectory(prefix="transfer-bo-chaos-") as name,
        storage_of(plan.storage, Path(name)) as (url, server),
    ):
        folder = Path(name)
        study = optuna.create_study(
            study_name=STUDY, storage=open_storage(url, create=True), sampler=_sampler()
        )

        def start() -> multiprocessing.process.BaseProcess:
            process = context.Process(target=run_worker, args=(url, folder, plan), daemon=True)
            process.start()
            return process

        workers = [start() for _ in range(plan.workers)]
        while not (folder / "steps").exists() and any(worker.is_alive() for worker in workers):
            time.sleep(0.05)  # the first start loads the libraries, for all of them
        started = time.monotonic()
        deadline = started + plan.patience + 4 * plan.trials * plan.seconds / plan.workers
        next_kill = started + plan.kill_every
        while workers and time.monotonic() < deadline:
            time.sleep(0.1)
            for worker in list(workers):
                if worker.exitcode is not None:
                    workers.remove(worker)
                    if worker.exitcode != 0:  # killed, or dead of itself
                        workers.append(start())
            ended = _lines(folder / "results")
            is_time = time.monotonic() > next_kill and len(ended) >= plan.kill_trials * count.kills
            if is_time and workers and count.kills < plan.most_kills:
                victim = chance.choice(workers)
                if victim.pid is not None and victim.exitcode is None:
                    os.kill(victim.pid, signal.SIGKILL)
                    count.kills += 1
                next_kill = max(next_kill + plan.kill_every, time.monotonic())
            next_restart = plan.trials * (count.restarts + 1) / (plan.restarts + 1)
            if server is not None and count.restarts < plan.restarts and len(ended) >= next_restart:
                server.stop("fast" if count.restarts % 2 else "immediate")
                time.sleep(plan.away)
                server.start()
                count.restarts += 1
                say(f"database restarted after {len(ended)} trials")
        count.seconds = time.monotonic() - started
        count.ended = not workers
        for worker in workers:
            worker.kill()
        trials = study.get_trials(deepcopy=False)
        _judge(count, trials, _lines(folder / "results"), _lines(folder / "steps"))
        log = folder / "workers.log"
        if log.exists():
            say(log.read_text()[-1500:])
    return count


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _judge(count: Count, trials: list[FrozenTrial], results: list[str], steps: list[str]) -> None:
    outcomes = Counter(trial.state.name for trial in trials)
    count.trials = len(trials)
    count.finished = outcomes["COMPLETE"]
    count.preempted = outcomes["FAIL"]
    count.stuck = outcomes["RUNNING"] + outcomes["WAITING"]
    count.retried = sum(bool(trial.user_attrs.get(OWNER_LOSSES_ATTR)) for trial in trials)
    count.steps_repeated = len(steps) - len(set(steps))
    values = {trial.number: trial.value for trial in trials if trial.state.name == "COMPLETE"}
    for line in results:
        number, value = line.split()
        count.lost += values.get(int(number)) != float(value)
    for trial in trials:  # a result that is there but wrong is lost, too
        if trial.state.name == "COMPLETE":
            count.lost += trial.value != loss_of(trial.params["x"])
    count.twice = len(results) - len(set(results))
    for name in (TOKEN_ATTR, "x"):
        of = Counter(trial.user_attrs.get(name, trial.params.get(name)) for trial in trials)
        of.pop(None, None)  # a trial that died before it asked for anything
        count.twice += sum(of.values()) - len(of)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--storage", choices=["postgresql", "sqlite", "journal", "grpc"], default="postgresql"
    )
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.2)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=1.0)
    parser.add_argument("--kill-trials", type=float, default=0.0)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--patience", type=float, default=300.0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped in order, leaving no process behind
    has_server = given.storage in ("postgresql", "grpc")
    count = run(
        Plan(
            given.storage,
            given.trials,
            given.workers,
            given.seconds,
            given.kill_every,
            given.kill_trials,
            given.grace,
            restarts=given.restarts * has_server,
            patience=given.patience,
        ),
        say=lambda line: print(line, flush=True),
    )
    for key, value in dataclasses.asdict(count).items():
        print(f"{key.replace('_', ' '):>15}  {value if isinstance(value, int) else f'{value:.1f}'}")
    sys.exit(not count.ended or any((count.lost, count.twice, count.stuck)))


if __name__ == "__main__":
    main()
