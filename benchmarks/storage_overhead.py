"""What a trial costs besides training: ask and tell per storage, against Optuna's loop; a large study.

    python benchmarks/storage_overhead.py [--trials 100] [--large 10000]

Objectives return at once, so all the time is overhead. "Optuna" is `study.optimize` with RandomSampler on
Optuna's own storage; "ours, random" the same sampler in our loop (retries, marks of ownership, liveness); the
difference is what safety costs. "ours, search" is `TransferSampler` in its start-up phase. In brackets is the
time of this process's core, which says more on a busy machine. Then a study of many trials is made, opened in
a process of its own, and asked for one more. `--trials 0` leaves out the loops, `--large 0` the large study.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages._rdb import models
from optuna.trial import TrialState

import transfer_bo as tb
import transfer_bo.search.policy  # or the first proposal loads torch, while another thing is measured
from transfer_bo.attributes import OUTCOME_ATTR, SCALE_ATTR
from transfer_bo.runners.objective import objective
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.store.backends import connect_backend, open_storage
from transfer_bo.store.owner import Owner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runners"))
LADDER = [tb.Scale(width=16, tokens=1e6), tb.Scale(width=32, tokens=1e6)]
TARGET = tb.Scale(width=256, tokens=1e7)


def train(trial: optuna.Trial) -> float:
    """Two HPs and one report."""
    x, y = trial.suggest_float("x", 0.001, 1, log=True), trial.suggest_float("y", 0.001, 1, log=True)
    trial.report(x + y, step=500)
    return x + y


def search(startup: int = 10**9) -> tb.TransferSampler:
    """A sampler that makes start-up draws only, unless asked otherwise."""
    return tb.TransferSampler(ladder=tb.Ladder(LADDER), target=TARGET, seed=0, n_startup_trials=startup)


def optunas_loop(url: str, trials: int) -> None:
    """`study.optimize` on Optuna's storage."""
    optuna.create_study(
        storage=connect_backend(url, create=True), sampler=optuna.samplers.RandomSampler(seed=0)
    ).optimize(train, n_trials=trials)


def our_loop(url: str, trials: int, sampler: optuna.samplers.BaseSampler) -> None:
    """`work` on a patient storage."""
    owner = Owner.here()
    study = optuna.create_study(storage=open_storage(url, create=True, owner=owner), sampler=sampler)
    ladder = getattr(sampler, "_ladder", None)

    @objective
    def scaled(trial: optuna.Trial) -> float:
        if ladder is not None:
            ladder.suggest(trial)
        return train(trial)

    work(study, scaled, is_over=lambda ended: len(ended) >= trials, options=WorkerOptions(owner=owner))


def milliseconds(function: Callable[[], None], trials: int) -> tuple[float, float]:
    """Per trial, by the clock and of this process's core."""
    started, cpu = time.perf_counter(), time.process_time()
    function()
    return 1000 * (time.perf_counter() - started) / trials, 1000 * (time.process_time() - cpu) / trials


def fill(url: str, trials: int) -> None:
    """A study of many finished trials, written to the tables in one go: one by one it takes long."""
    storage = open_storage(url, create=True)
    study = optuna.create_study(study_name="large", storage=storage, sampler=search())
    study.sampler.before_trial(study, None)  # type: ignore[arg-type]
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    draw = random.Random(0)
    rows = [
        {"number": n, "study_id": study._study_id, "state": TrialState.COMPLETE, "datetime_start": now,
         "datetime_complete": now}
        for n in range(trials)
    ]  # fmt: skip
    hp = optuna.distributions.FloatDistribution(0.001, 1, log=True)
    rung = optuna.distributions.IntDistribution(0, 2)
    params, values, attrs = [], [], []
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        new = models.TrialModel.__table__.insert().returning(
            models.TrialModel.trial_id, sort_by_parameter_order=True
        )
        for n, key in enumerate(connection.execute(new, rows).scalars()):
            x, y = draw.uniform(0.001, 1), draw.uniform(0.001, 1)
            for name, value, distribution in (("x", x, hp), ("y", y, hp), ("rung", n % 2, rung)):
                text = optuna.distributions.distribution_to_json(distribution)
                params.append(
                    {"trial_id": key, "param_name": name, "param_value": value, "distribution_json": text}
                )
            finite = models.TrialValueModel.TrialValueType.FINITE
            values.append({"trial_id": key, "objective": 0, "value": x + y, "value_type": finite})
            for name, content in ((SCALE_ATTR, dict(LADDER[n % 2])), (OUTCOME_ATTR, "finished")):
                attrs.append({"trial_id": key, "key": name, "value_json": json.dumps(content)})
        connection.execute(models.TrialParamModel.__table__.insert(), params)
        connection.execute(models.TrialValueModel.__table__.insert(), values)
        connection.execute(models.TrialUserAttributeModel.__table__.insert(), attrs)
    engine.dispose()


def large(url: str, trials: int) -> None:
    """Open a large study in a fresh process and ask it for one more trial with the surrogate."""
    fill(url, trials)
    code = f"""
import sys, time, warnings; warnings.simplefilter("ignore")
sys.path.insert(0, {str(Path(__file__).parent)!r})
import optuna, storage_overhead as bench
optuna.logging.set_verbosity(optuna.logging.ERROR)
started, cpu = time.perf_counter(), time.process_time()
study = optuna.load_study(
    study_name="large", storage=bench.open_storage({url!r}, create=False), sampler=bench.search(10)
)
study.get_trials(deepcopy=False); opened, cpu_opened = time.perf_counter(), time.process_time()
trial = study.ask(); study.sampler._ladder.suggest(trial)
trial.suggest_float("x", 0.001, 1, log=True); asked, cpu_asked = time.perf_counter(), time.process_time()
print(f"{trials} trials: opened in {{opened - started:.1f}} s ({{cpu_opened - cpu:.1f}} s of a core), "
      f"asked in {{asked - opened:.1f}} s ({{cpu_asked - cpu_opened:.1f}} s of a core)")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--large", type=int, default=10_000)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from postgres import cluster, why_not

    with tempfile.TemporaryDirectory() as name:

        def measure(kind: str, url: str) -> None:
            times = {
                "Optuna": milliseconds(lambda: optunas_loop(url, given.trials), given.trials),
                "ours, random": milliseconds(
                    lambda: our_loop(url, given.trials, optuna.samplers.RandomSampler(seed=0)), given.trials
                ),
                "ours, search": milliseconds(lambda: our_loop(url, given.trials, search()), given.trials),
            }
            shown = "  ".join(
                f"{loop} {clock:6.1f} ms (core {cpu:5.1f})" for loop, (clock, cpu) in times.items()
            )
            print(f"{kind:>10}  {shown}  per trial", flush=True)

        for kind in ("sqlite", "journal") if given.trials else ():
            measure(kind, f"{kind}:///{name}/{kind}.db")
        if (missing := why_not()) is not None:
            print(f"postgresql  not measured: {missing}")
        else:
            with cluster() as server:
                if given.trials:
                    measure("postgresql", server.url)
                if given.large:
                    large(server.url, given.large)


if __name__ == "__main__":
    main()
