"""What a trial costs besides training: ask and tell per storage, against Optuna's loop; a large study.

    python benchmarks/storage_overhead.py [--trials 100] [--large 10000]

Objectives return at once, so all the time is overhead. "Optuna" is `study.optimize` with RandomSampler on
Optuna's own storage; "ours, random" the same sampler in our loop (retries, marks of ownership, liveness); the
difference is what safety costs. "ours, search" is `TransferSampler` in its start-up phase. Then a study of
many trials is made, opened in a process of its own, and asked for one more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna

import transfer_bo as tb
from transfer_bo.runners.backends import connect_backend
from transfer_bo.runners.liveness import Owner
from transfer_bo.runners.loop import work
from transfer_bo.runners.outcomes import objective
from transfer_bo.runners.storage import open_storage

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runners"))
LADDER = [tb.Scale(width=16, tokens=1e6), tb.Scale(width=32, tokens=1e6)]
TARGET = tb.Scale(width=256, tokens=1e7)


def train(trial: optuna.Trial) -> float:
    """Two HPs and one report."""
    x, y = trial.suggest_float("x", 0.001, 1, log=True), trial.suggest_float("y", 0.001, 1, log=True)
    trial.report(x + y, step=500)
    return x + y


def search(startup: int = 10**9) -> tb.TransferSampler:
    """A sampler that makes start-up draws only, unless told otherwise."""
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

    work(study, scaled, is_over=lambda study: len(study.get_trials(deepcopy=False)) >= trials, owner=owner)


def milliseconds(function: Callable[[], None], trials: int) -> float:
    """Per trial."""
    started = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - started) / trials


def large(url: str, trials: int) -> None:
    """Fill a study, then open it in a fresh process and ask for one more trial with the surrogate."""
    storage = open_storage(url, create=True)
    study = optuna.create_study(study_name="large", storage=storage, sampler=search())
    study.sampler.before_trial(study, None)  # type: ignore[arg-type]
    space = {name: optuna.distributions.FloatDistribution(0.001, 1, log=True) for name in ("x", "y")}
    space["rung"] = optuna.distributions.IntDistribution(0, 2)  # type: ignore[assignment]
    draw = optuna.samplers.RandomSampler(seed=0)._rng.rng
    for number in range(trials):
        x, y, rung = float(draw.uniform(0.001, 1)), float(draw.uniform(0.001, 1)), number % 2
        study.add_trial(
            optuna.trial.create_trial(
                value=x + y,
                params={"x": x, "y": y, "rung": rung},
                distributions=space,
                user_attrs={"transfer_bo:scale": dict(LADDER[rung]), "transfer_bo:outcome": "finished"},
            )
        )
    code = f"""
import sys, time, warnings; warnings.simplefilter("ignore")
sys.path.insert(0, {str(Path(__file__).parent)!r})
import optuna, storage_overhead as bench
optuna.logging.set_verbosity(optuna.logging.ERROR)
started = time.perf_counter()
study = optuna.load_study(
    study_name="large", storage=bench.open_storage({url!r}, create=False), sampler=bench.search(10)
)
study.get_trials(deepcopy=False); opened = time.perf_counter()
trial = study.ask(); study.sampler._ladder.suggest(trial)
trial.suggest_float("x", 0.001, 1, log=True); asked = time.perf_counter()
print(f"{trials} trials: opened in {{opened - started:.1f}} s, asked in {{asked - opened:.1f}} s")
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
            shown = "  ".join(f"{loop} {value:6.1f} ms" for loop, value in times.items())
            print(f"{kind:>10}  {shown}  per trial", flush=True)

        for kind in ("sqlite", "journal"):
            measure(kind, f"{kind}:///{name}/{kind}.db")
        if (missing := why_not()) is not None:
            print(f"postgresql  not measured: {missing}")
        else:
            with cluster() as server:
                measure("postgresql", server.url)
                large(server.url, given.large)


if __name__ == "__main__":
    main()
