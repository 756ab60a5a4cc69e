"""How long the first answer takes, beside the import of the libraries it needs, in the same run.

    python benchmarks/first_answer.py [STUDY.toml]

`transfer-bo suggest --runs` on 48 rows of ScaleBench with two HPs, largest scales left out in turn, with
threads as they are by default, with one, and with 16; then `transfer-bo report` of a study, if one is named.
A try is a new process for the imports and one for each command; the medians of several tries are compared.
"CPU" is the time of all threads together, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tables import find

LIBRARIES = "numpy pandas scipy.optimize scipy.special torch gpytorch botorch.models typer rich.table"
ROWS = 48
TRIES = 5
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", nargs="?", help="a study file whose study has been run")
    parser.add_argument("--tries", type=int, default=TRIES)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "runs.csv"
        cells = pd.read_csv(find("scalebench_small.csv"))
        proxies = cells[(cells.n_params < 2.2e8) & (cells.tokens <= 8e9)]
        proxies.sample(ROWS, random_state=0).to_csv(table, index=False)

        suggest = ["-m", "transfer_bo", "suggest", "--runs", str(table)]
        suggest += ["--axis", "n_params", "--axis", "tokens", "--hp", "lr:log", "--hp", "batch_tokens:log"]
        suggest += ["--loss", "loss", "--target", "n_params=268M", "--target", "tokens=100B"]
        commands = {
            "libraries": (["-c", f"import {', '.join(LIBRARIES.split())}"], None),
            "suggest --runs": (suggest, None),
            "the same, 1 thread": (suggest, 1),
            "the same, 16 threads": (suggest, 16),
        }
        if args.study:
            report = ["-m", "transfer_bo", "report", args.study, "--out", str(Path(folder) / "report.html")]
            commands["report"] = report, None

        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(args.tries):  # by turns, so that what else the machine does hits all of them
            for name, (arguments, threads) in commands.items():
                taken[name].append(seconds(arguments, threads))

    print(f"{'':22}{'clock':>9}{'CPU':>9}   times the libraries (clock, CPU)")
    libraries = np.median(taken["libraries"], 0)
    for name, tries in taken.items():
        clock, cpu = np.median(tries, 0)
        print(f"{name:22}{clock:7.2f} s{cpu:7.2f} s   {clock / libraries[0]:.2f}, {cpu / libraries[1]:.2f}")


def seconds(arguments: list[str], threads: int | None) -> tuple[float, float]:
    """Seconds by the clock, and of CPU, of a new Python with these arguments."""
    limits = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    environment = {name: value for name, value in os.environ.items() if name not in THREADS} | limits
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
