"""From tuned small runs to the learning rate of larger ones, on Marin's one-at-a-time sweeps.

    python benchmarks/marin.py

For AdamW and Lion the runs at 130M parameters (1 to 8 times Chinchilla's tokens; one HP changed at a time
about a tuned setting) are what a user has; the setting is suggested for 300M at each duration, and its
learning rate compared with the one that was tuned there. Too high is worse than too low: of the runs at 300M
with twice the tuned rate or more most diverged. A second table uses durations 1 and 2 alone.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from tables import find

from transfer_bo import Scale, suggest_from_runs

HIGHEST, LOWEST = 1.6, 1 / 2.5
"""Between which shares of the tuned learning rate a suggestion is neither reckless nor timid."""
HPS = {
    "hp_learning_rate": "log",
    "hp_train_batch_size": "log",
    "hp_weight_decay": "linear",
    "hp_beta1": "one_minus",
    "hp_beta2": "one_minus",
    "hp_warmup": "linear",
}


@dataclass(frozen=True)
class Case:
    """One suggestion beside what was tuned."""

    optimizer: str
    fitted: str
    times: float
    tuned: float
    suggested: float
    low: float
    high: float
    batch: float

    @property
    def ratio(self) -> float:
        """Suggested over tuned learning rate."""
        return self.suggested / self.tuned


def read() -> pd.DataFrame:
    """All runs with their scale: parameters as named, tokens 20 a parameter times the duration."""
    table = pd.read_csv(find("marin_adamw_lion_small.csv"))
    table["n_params"] = table["size"].str.removesuffix("m").astype(float) * 1e6
    table["tokens"] = 20 * table["n_params"] * table["chinchilla"]
    return table


def cases(longest: int) -> Iterator[Case]:
    """Suggestions for 300M from runs at 130M of at most so many times Chinchilla's tokens."""
    table = read()
    for optimizer, runs in table.groupby("optimizer"):
        small = runs[(runs["n_params"] < 2e8) & (runs["chinchilla"] <= longest)]
        large = runs[(runs["n_params"] > 2e8) & (runs["row"] == "Baseline")].sort_values("chinchilla")
        hps = {name: kind for name, kind in HPS.items() if small[name].nunique() > 1}
        for _, tuned in large.iterrows():
            suggestion = suggest_from_runs(
                small[["n_params", "tokens", "loss", *hps]],
                axes=["n_params", "tokens"],
                hps=hps,
                target=Scale(n_params=tuned["n_params"], tokens=tuned["tokens"]),
            )
            low, high = suggestion.interval()["hp_learning_rate"]
            yield Case(
                str(optimizer),
                f"1 to {longest}x",
                float(tuned["chinchilla"]),
                float(tuned["hp_learning_rate"]),
                float(suggestion.params["hp_learning_rate"]),
                low,
                high,
                float(suggestion.params["hp_train_batch_size"]),
            )


def main() -> None:
    """Print a line per suggestion."""
    warnings.simplefilter("ignore")
    print("optimizer  fitted   target  tuned lr  suggested (90% interval)       ratio  batch")
    for case in itertools.chain(cases(8), cases(2)):
        verdict = "" if LOWEST <= case.ratio <= HIGHEST else "  outside"
        print(
            f"{case.optimizer:9}  {case.fitted:7}  {case.times:4g}x  {case.tuned:8.4f}  "
            f"{case.suggested:.5f} ({case.low:.5f} to {case.high:.5f})  {case.ratio:5.2f}  "
            f"{case.batch:5.0f}{verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
