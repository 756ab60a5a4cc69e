"""E, κ and R(∞) of sweeps made from the very law they are defined by, and their intervals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from transfer_bo.diagnostics.metrics import compare_parametrizations, metrics_table
from transfer_bo.errors import DiagnosticError

DATA = Path(os.environ.get("TRANSFER_BO_DATA", Path(__file__).parents[3] / "shared" / "data"))


def law_sweep(
    *,
    limit: float = 3.0,
    alpha: float = 0.5,
    beta: float = 0.0,
    g: float = 0.2,
    noise: float = 0.0,
    seed: int = 0,
    name: str = "rule",
) -> pd.DataFrame:
    """Losses of the joint law of `diagnostics.metrics` at five sizes and nine learning rates."""
    rng = np.random.default_rng(seed)
    rows = []
    for doublings in range(5):
        for z in np.linspace(-4, 4, 9):
            bowl = 0.5 * 0.01 * 2 ** (g * doublings) * (z + beta * doublings) ** 2
            loss = limit + 2.0 * 2 ** (-alpha * doublings) + bowl
            rows.append((name, 32 * 2**doublings, 2.0**z, loss * np.exp(noise * rng.standard_normal())))
    return pd.DataFrame(rows, columns=["parametrization", "width", "lr", "loss"])


def test_exact_law() -> None:
    """On the law itself E vanishes and every exponent comes back; κ = α + g whatever the drift β."""
    found = compare_parametrizations(law_sweep(alpha=0.5, beta=0.3, g=0.2), draws=2)["rule"]

    assert found.fit_error.value < 1e-4
    assert found.alpha.value == pytest.approx(0.5, rel=0.01)
    assert found.beta.value == pytest.approx(0.3, rel=0.01)
    assert found.kappa.value == pytest.approx(0.7, rel=0.03)
    assert found.gamma.value == pytest.approx(0.2 + 2 * 0.3, rel=0.03)
    assert found.limit.value == pytest.approx(3.0, rel=0.01)


def test_penalty_is_the_gap_to_the_best_limit() -> None:
    """R(∞) is zero for the best and the difference of limits for the others."""
    frame = pd.concat([law_sweep(limit=3.0, name="good"), law_sweep(limit=3.25, name="bad")])
    found = compare_parametrizations(frame, draws=2)

    assert 0.0 == found["good"].penalty.value
    assert found["bad"].penalty.value == pytest.approx(0.25, abs=0.01)


def test_fit_error_is_the_scatter_about_the_law() -> None:
    """With 1% noise E is 1%, less what the seven unknowns of the law take up; intervals hold the truth."""
    found = compare_parametrizations(law_sweep(noise=0.01, beta=0.3), draws=60)["rule"]
    expected = 0.01 * np.sqrt((45 - 7) / 45)

    assert found.fit_error.value == pytest.approx(expected, rel=0.35)  # 2.6 sd of a spread of 38 residuals
    assert found.fit_error.holds(expected)
    assert found.beta.holds(0.3)
    assert found.kappa.holds(0.7)


def test_what_bends_fits_worse() -> None:
    """A bowl that jumps between sizes has a larger E, and heads the table last."""
    jumpy = law_sweep(name="jumpy")
    jumpy.loc[jumpy["width"].isin([64, 256]), "lr"] *= 4
    found = compare_parametrizations(pd.concat([jumpy, law_sweep(name="steady")]), draws=2)

    assert ["steady", "jumpy"] == list(metrics_table(found)["parametrization"])
    assert found["jumpy"].fit_error.value > 10 * found["steady"].fit_error.value


def test_published_table_can_be_read_as_ranks() -> None:
    """In the published table muP and SP + embedding LR fit about alike, SP an order of magnitude worse."""
    path = DATA / "kalra_metrics.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here; set TRANSFER_BO_DATA to the folder that holds it")
    median = pd.read_csv(path).groupby("abc_key")["E"].median()

    assert median["sp"] > 10 * max(median["mup_sp"], median["sp_embd"])


@pytest.mark.parametrize(
    ("frame", "value"),
    [
        (law_sweep().drop(columns="parametrization"), "'parametrization'"),
        (law_sweep().query("width < 100"), "'rule' has 2 sizes"),
        (law_sweep().query("width < 50"), "'rule': Only 1"),
        (law_sweep().head(0), "rows"),
    ],
)
def test_bad_input_is_named(frame: pd.DataFrame, value: str) -> None:
    """Each mistake has an error that names the value at fault."""
    with pytest.raises(DiagnosticError) as caught:
        compare_parametrizations(frame)

    assert value in str(caught.value)
