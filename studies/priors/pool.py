"""Pool published exponents into priors of the drift, by the rule of README.md.

    python studies/priors/pool.py

Symbols: μ = mean exponents of an HP (p), H = which exponents an entry adds up (n x p), x = what the entries
say (n), V = variances of their errors (n), T = covariance of one work's deviations from μ (p x p).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent

EXPONENTS = {
    "lr": ("n_params", "tokens, batch fixed", "tokens, batch free", "batch"),
    "batch": ("n_params", "tokens, batch free"),
}
"""Unknown means, by HP."""

UNSTATED_SD = 0.1
DERIVED_SD = 0.15
OTHER_FAMILY_SD = 0.15
OTHER_SETTING_SD = 0.15
MEMORY_SD = 0.1

TAUS = np.linspace(0.01, 0.5, 50)
RHOS = np.linspace(-0.95, 0.95, 39)


@dataclass(frozen=True)
class Pool:
    """Exponents of one more work, of unknown optimizer.

    Attributes:
        names: of the exponents (p).
        mean: of each (p).
        covariance: of the means' errors, the deviations between sources and those between optimizers (p x p).
        tau: between-source standard deviation.
        rho: correlation of a work's deviations along parameters and along tokens.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray
    tau: float
    rho: float

    def of(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of an exponent."""
        i = self.names.index(name)
        return float(self.mean[i]), float(self.covariance[i, i] ** 0.5)

    def correlation(self, one: str, other: str) -> float:
        """Correlation of two exponents."""
        i, j = self.names.index(one), self.names.index(other)
        return float(self.covariance[i, j] / (self.covariance[i, i] * self.covariance[j, j]) ** 0.5)


def read_sources() -> pd.DataFrame:
    """The entries that are used, those fitted here included, with the variance of their errors."""
    table = pd.read_csv(HERE / "sources.csv")
    table = table[table["used"] == "yes"].reset_index(drop=True)

    for i, entry in table[table["kind"] == "fitted"].iterrows():
        value, sd = _fitted(entry["source"], "n_params" if entry["n_params"] else "tokens")
        table.loc[i, ["exponent", "sd"]] = value, sd

    table["variance"] = (
        table["sd"].fillna(UNSTATED_SD) ** 2
        + table["kind"].isin(["derived", "theory"]) * DERIVED_SD**2
        + (table["family"] != "adam") * OTHER_FAMILY_SD**2
        + table["other_setting"].notna() * OTHER_SETTING_SD**2
        + (table["confidence"] == "low") * MEMORY_SD**2
    )
    return table


def _fitted(log: str, axis: str) -> tuple[float, float]:
    """Exponent and its sd that `fit_logs.py` found."""
    form = {"(Mis)Fitting": "surge", "Schaipp": "log cooldown"}[log]
    parameter = "mean slope" if form == "surge" and axis == "tokens" else axis
    fitted = pd.read_csv(HERE / "fitted.csv")
    fitted = fitted[(fitted["log"] == log) & (fitted["form"] == form) & (fitted["parameter"] == parameter)]
    return float(fitted["value"].iloc[0]), float(fitted["sd"].iloc[0])


def design(table: pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """Which exponents each entry adds up (n x p)."""
    H = np.zeros((len(table), len(names)))
    for i, entry in enumerate(table.itertuples(index=False)):
        tokens = f"tokens, batch {entry.batch}"
        for name, value in (
            ("n_params", entry.n_params),
            (tokens, entry.tokens),
            ("batch", entry.batch_exponent),
        ):
            if value:
                H[i, names.index(name)] = value
    return H


def pool(table: pd.DataFrame, names: tuple[str, ...], rows: np.ndarray, variance: np.ndarray) -> Pool:
    """Random-effects pooling of entries.

    Args:
        table: sources and exponents (n).
        names: of the exponents (p).
        rows: which of them each entry adds up (n x p).
        variance: of each entry's error (n).
    """
    x = table["exponent"].to_numpy(float)
    same = (table["source"].to_numpy()[:, None] == table["source"].to_numpy()[None]).astype(float)
    along_tokens = np.array([name.startswith("tokens") for name in names])
    paired = np.outer(along_tokens, [name == "n_params" for name in names])
    paired = (paired | paired.T).astype(float)

    found = []
    for tau, rho in itertools.product(TAUS, RHOS):
        T = tau**2 * (np.eye(len(names)) + rho * paired)
        if (
            names == EXPONENTS["lr"]
        ):  # a work's deviations along tokens are the same at a fixed and a free batch
            T[1, 2] = T[2, 1] = tau**2
        C = rows @ T @ rows.T * same + np.diag(variance)
        precision = rows.T @ np.linalg.solve(C, rows)
        mean = np.linalg.solve(precision, rows.T @ np.linalg.solve(C, x))

        left = x - rows @ mean
        log_det = np.linalg.slogdet(C)[1] + np.linalg.slogdet(precision)[1]
        found.append(
            (-(log_det + left @ np.linalg.solve(C, left)) / 2, tau, rho, mean, np.linalg.inv(precision) + T)
        )

    log_weights = np.array([one[0] for one in found])
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    means = np.array([one[3] for one in found])
    mean = weights @ means
    covariance = np.einsum("k,kij->ij", weights, np.array([one[4] for one in found]))
    covariance += np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    covariance += OTHER_FAMILY_SD**2 * np.eye(len(names))
    return Pool(
        names,
        mean,
        covariance,
        float(weights @ np.array([one[1] for one in found])),
        float(weights @ np.array([one[2] for one in found])),
    )


def pools() -> dict[str, Pool]:
    """The exponents of the learning rate and of the batch size."""
    table = read_sources()
    pooled = {}
    for hp in ("batch", "lr"):
        entries = table[table["hp"] == hp].reset_index(drop=True)
        rows, names = design(entries, EXPONENTS[hp]), EXPONENTS[hp]
        pooled[hp] = pool(entries, names, rows, entries["variance"].to_numpy(float))
    names, lr, batch = EXPONENTS["lr"], pooled["lr"], pooled["batch"]

    # Entry 5 of the rule, from what is known at a fixed batch.
    fixed, at_batch, grows = lr.of(names[1]), lr.of(names[3]), batch.of("tokens, batch free")
    derived = pd.DataFrame(
        {"source": ["derived"], "exponent": [fixed[0] + at_batch[0] * grows[0]]},
    )
    propagated = fixed[1] ** 2 + (grows[0] * at_batch[1]) ** 2 + (at_batch[0] * grows[1]) ** 2
    entries = table[table["hp"] == "lr"].reset_index(drop=True)
    rows = np.vstack([design(entries, names), [0, 0, 1, 0]])
    variance = np.append(entries["variance"].to_numpy(float), propagated + DERIVED_SD**2)
    pooled["lr"] = pool(pd.concat([entries, derived], ignore_index=True), names, rows, variance)
    return pooled


def main() -> None:
    """Print the constants."""
    for hp, one in pools().items():
        for name in one.names:
            mean, sd = one.of(name)
            print(f"{hp:6} {name:22} {mean:+.2f} ± {sd:.2f}")
        for name in one.names:
            if name.startswith("tokens"):
                print(f"{hp:6} correlation of n_params and {name} {one.correlation('n_params', name):+.2f}")
        print(f"{hp:6} between sources: {one.tau:.2f}, correlated by {one.rho:+.2f}")


if __name__ == "__main__":
    main()
