"""What all searches of the main result know together: one fit, one answer, trained at the target.

    OMP_NUM_THREADS=1 python studies/search_model/pooled.py --budget 1 --train

Fits the proxies of `trainings.csv` of this budget as one study, those of this package, TPE and GPSampler with
all seeds; prints the suggestion and its predicted loss, and trains it with a seed that no search used.
"""

from __future__ import annotations

import argparse
import warnings

import optuna
import pandas as pd
import torch
from trainings import CSV, projection_of, task_of

from transfer_bo.runners.attempt import Attempt

SEED = 77


def main() -> None:
    """Fit, answer, and train if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--train", action="store_true", help="one run at the target: 3 minutes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)

    trainings = pd.read_csv(CSV).query(
        "purpose == 'search' and search != 'lr' and budget == @arguments.budget"
    )
    task = task_of(0, arguments.budget)
    suggestion = projection_of(task, trainings).suggest()
    low, high = suggestion.predicted_loss.interval(0.9)
    print(
        f"{len(trainings)} runs: { ({name: round(value, 4) for name, value in suggestion.params.items()}) }"
    )
    print(f"predicted {suggestion.predicted_loss.mean:.3f} ({low:.3f} to {high:.3f})", flush=True)
    if not arguments.train:
        return

    attempt = Attempt(
        number=0,
        scale=task.file.target,
        hps=task.space.defaults | suggestion.params,
        seed=SEED,
        accumulate=1,
        owner_losses=0,
        report=lambda progress, loss: None,
    )
    print(f"at the target {task.train_here(attempt, checkpoint=None):.3f}")


if __name__ == "__main__":
    main()
