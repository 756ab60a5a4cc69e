"""A suggestion from runs you already have, in a CSV file (half a minute on one core).

Run it: .venv/bin/python examples/runs_from_csv.py. `transfer-bo suggest --runs examples/runs.csv` does the
same, with --axis, --hp, --status and --target.
"""

from pathlib import Path

import pandas as pd

import transfer_bo as tb

if __name__ == "__main__":
    suggestion = tb.suggest_from_runs(
        pd.read_csv(Path(__file__).parent / "runs.csv"),
        axes=["n_params", "tokens"],
        hps={"lr": "log", "batch_tokens": "log"},
        loss="loss",
        status="status",
        target=tb.Scale(n_params=1e9, tokens=2e10),
    )
    for name, (low, high) in suggestion.interval(0.9).items():
        print(f"{name}: set {suggestion.params[name]:.3g}; 90% interval {low:.3g} to {high:.3g}")
    print(f"predicted loss: {suggestion.predicted_loss.mean:.3f}")
    for warning in suggestion.warnings:
        print("-", warning)
