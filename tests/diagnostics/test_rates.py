"""Rates of transfer: known laws are recovered, exact ridge curves too; what is unclear stays undecided."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ridge_curves import BEST_AT_INFINITY, risk, risk_at_infinity

from transfer_bo.diagnostics.curves import read_sweep
from transfer_bo.diagnostics.laws import EXPONENTS, exponent_interval, fit_gap, fit_law, least_exponent
from transfer_bo.diagnostics.rates import Rates, judge_repair, transfer_rates
from transfer_bo.errors import DiagnosticError, NoRunsError, TransferError

SIZES = (16, 32, 64, 128, 256)


def bowls(
    alpha: float = 0.5,
    beta: float = 0.6,
    drift: float = 4.0,
    noise: float = 0.0,
    seed: int = 0,
    repeats: int = 1,
    sizes: tuple[float, ...] = SIZES,
) -> pd.DataFrame:
    """Parabolas whose level falls as n^-alpha and whose optimum moves as n^-beta (octaves)."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in sizes:
        for octave in np.arange(-9.0, -1.9, 0.5):
            z = octave - (-5.5 - drift * n**-beta)
            for _ in range(repeats):
                loss = 2.0 + 3.0 * n**-alpha + 0.02 * z**2
                rows.append((n, 2.0**octave, loss * np.exp(noise * rng.standard_normal())))
    return pd.DataFrame(rows, columns=["width", "lr", "loss"])


def rates_of(frame: pd.DataFrame, draws: int = 100) -> Rates:
    """Rates over width."""
    return transfer_rates(read_sweep(frame, size="width", hp="lr"), "width", draws)


def ridge_sweep(sizes: tuple[float, ...], octaves: float) -> pd.DataFrame:
    """Exact risks at 21 penalties around the best one at infinite width."""
    penalties = BEST_AT_INFINITY * np.exp2(np.linspace(-octaves, octaves, 21))
    return pd.DataFrame(
        [(n, p, risk(p, n)) for n in sizes for p in penalties], columns=["width", "lr", "loss"]
    )


@pytest.mark.parametrize("penalty", [0.05, 0.3, 1.0, 5.0])
def test_ridge_risk_tends_to_its_closed_form(penalty: float) -> None:
    """The finite-width solution at ψ2 = ∞ is the infinite-width formula; ψ2 = 1e8 is close to it."""
    exact = risk_at_infinity(penalty)

    assert exact == pytest.approx(risk(penalty, np.inf), rel=1e-12)
    assert exact == pytest.approx(risk(penalty, 1e8), rel=1e-7)


def test_rates_of_ridge_regression() -> None:
    """a_n and b_n fall as 1/n and c_n as 1/n² (2512.22768): recovered to 5% where the next order is small."""
    rates = rates_of(ridge_sweep(tuple(2.0**k for k in range(10, 16)), 0.5))

    assert rates.alpha.value == pytest.approx(1.0, rel=0.05)
    assert rates.beta.value == pytest.approx(1.0, rel=0.05)
    assert rates.gamma.value == pytest.approx(2.0, rel=0.05)
    assert "fast" == rates.verdict


@pytest.mark.parametrize("smallest", [2, 3, 4, 6])
def test_intervals_know_of_finite_sizes(smallest: int) -> None:
    """At small sizes the exact curves look steeper than they are; intervals hold the limits 1, 1 and 2."""
    rates = rates_of(ridge_sweep(tuple(2.0 ** (smallest + k) for k in range(6)), 2.0))

    assert rates.beta.value > 1.3
    assert rates.alpha.holds(1.0)
    assert rates.beta.holds(1.0)
    assert rates.gamma.holds(2.0)
    assert rates.ratio.holds(2.0)


def test_an_exact_law_has_one_exponent_and_three_sizes_have_many() -> None:
    """Without a next order nothing is added, with three sizes nearly every exponent is possible."""
    n = 2.0 ** np.arange(4, 10)

    assert least_exponent(n, 1 + n**-0.7) == pytest.approx(0.7, rel=0.03)
    assert least_exponent(n[:3], 1 + n[:3] ** -0.7) < 0.5


def test_optima_of_ridge_regression_are_exact() -> None:
    """The located optimum at infinite width is the closed form, and its loss the least risk."""
    rates = rates_of(ridge_sweep((64.0, 256.0, np.inf), 0.5))

    assert rates.optimum[-1].value == pytest.approx(BEST_AT_INFINITY, rel=1e-6)
    assert rates.best_loss[-1].value == pytest.approx(risk_at_infinity(BEST_AT_INFINITY), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 2.0), st.floats(0.3, 2.0), st.floats(1.0, 4.0))
def test_known_rates_are_recovered(alpha: float, beta: float, drift: float) -> None:
    """On parabolas without noise all three rates come out, whatever they are."""
    sizes = (4.0, 8.0, 16.0, 32.0, 64.0)
    rows = []
    for n in sizes:
        for z in np.linspace(-4, 4, 17):
            # A level far above its changes, so that the logarithm of the loss is nearly a parabola too.
            rows.append((n, 2.0**z, 100 + 3 * n**-alpha + 0.02 * (z - drift * n**-beta) ** 2))
    rates = rates_of(pd.DataFrame(rows, columns=["width", "lr", "loss"]), draws=0)

    assert rates.alpha.value == pytest.approx(alpha, rel=0.02)
    assert rates.beta.value == pytest.approx(beta, rel=0.02)
    assert rates.gamma.value == pytest.approx(2 * beta, rel=0.02)


@pytest.mark.parametrize(("alpha", "beta", "verdict"), [(0.5, 1.0, "fast"), (1.0, 0.5, "slow")])
def test_verdict_follows_the_ratio(alpha: float, beta: float, verdict: str) -> None:
    """Fast above 2β/α = 1, slow where it surely lies below 1.25."""
    rates = rates_of(bowls(alpha, beta, drift=4.0, noise=1e-5, sizes=(4, 8, 16, 32, 64)))

    assert verdict == rates.verdict
    assert rates.ratio.holds(2 * beta / alpha)


def test_intervals_cover() -> None:
    """Over 60 noisy sweeps the 90% intervals of α and of the drift hold the truth as often as they say."""
    held = np.zeros(2)
    for seed in range(60):
        rates = rates_of(bowls(noise=0.003, seed=seed, repeats=2), draws=60)
        held += [rates.alpha.holds(0.5), rates.drift.holds(4.0 * (16**-0.6 - 256**-0.6))]

    # 54 expected; fewer than 46 or more than 59 has a chance below 1% each, if the level is right.
    assert (held >= 46).all()


def test_noise_alone_is_undecided() -> None:
    """Where the optimum stays, no rate is claimed, and the bound on what transfer costs is said."""
    rates = rates_of(bowls(drift=0.0, noise=0.003))

    assert "undecided" == rates.verdict
    assert "costs at most" in rates.reasons[0]


def test_two_minima_are_named() -> None:
    """A loss with two minima makes the verdict undecided and says at which size."""
    frame = bowls()
    octave = np.log2(frame["lr"])
    bump = 0.3 * np.exp(-(((octave + 5.5) / 0.7) ** 2))
    frame["loss"] += np.where(frame["width"] == 64, bump, 0.0)
    rates = rates_of(frame)

    assert "jump" == rates.verdict
    assert any("two separate minima" in reason and "64" in reason for reason in rates.reasons)


def test_a_jump_is_named() -> None:
    """An optimum that moves four octaves in one doubling jumps."""
    frame = bowls(drift=0.0, noise=1e-3, sizes=(16, 32, 64))
    far = bowls(drift=0.0, noise=1e-3, sizes=(128, 256))
    far["lr"] *= 16
    rates = rates_of(pd.concat([frame, far]))

    assert "jump" == rates.verdict
    assert any("jumps" in reason for reason in rates.reasons)


def test_a_repair_is_judged_by_both_sweeps() -> None:
    """A jump that is gone afterwards is repaired, one that stays is not; without one nothing is."""
    frame = bowls(drift=0.0, noise=1e-3, sizes=(16, 32, 64))
    far = bowls(drift=0.0, noise=1e-3, sizes=(128, 256))
    far["lr"] *= 16
    jump = rates_of(pd.concat([frame, far]))
    steady = rates_of(bowls(0.5, 1.0, drift=4.0, noise=1e-5, sizes=(4, 8, 16, 32, 64, 128, 256)))
    slow = rates_of(bowls(1.0, 0.5, drift=4.0, noise=1e-5, sizes=(4, 8, 16, 32, 64)))
    apart = rates_of(bowls(sizes=(1000, 2000, 4000)))

    assert judge_repair(jump, steady, "a rate per layer").repaired
    assert "repaired by a rate per layer: now fast" in judge_repair(jump, steady, "a rate per layer").sentence
    assert judge_repair(slow, steady, "a rate per layer").repaired
    assert not judge_repair(jump, jump, "a rate per layer").repaired
    assert "Nothing to repair" in judge_repair(steady, jump, "a rate per layer").sentence
    with pytest.raises(DiagnosticError):
        judge_repair(jump, apart, "a rate per layer")


def test_an_optimum_at_the_edge_is_named() -> None:
    """The best value being the last one tried is no optimum."""
    frame = bowls(drift=0.0)
    rates = rates_of(frame[frame["lr"] < 2.0**-5.5])

    assert "undecided" == rates.verdict
    assert any("at the end of those tried" in reason for reason in rates.reasons)


def test_divergence_above_the_best_is_no_edge() -> None:
    """Diverged runs count as tried, so a best value next to the cliff is a best value."""
    frame = bowls(drift=0.0)
    frame.loc[frame["lr"] > 2.0**-5.2, "loss"] = np.inf
    rates = rates_of(frame)

    assert not any("the last one tried" in reason for reason in rates.reasons)


def test_law_with_a_limit() -> None:
    """Exponent, limit and amplitude of an exact law come back, in any unit of n."""
    n = np.array([10.0, 20.0, 40.0, 80.0])
    law = fit_law(n, (1.5 + 7.0 * n**-0.62)[None])

    assert law.exponent[0] == pytest.approx(0.62, rel=1e-3)
    assert law.limit[0] == pytest.approx(1.5, rel=1e-3)
    assert law.amplitude[0] == pytest.approx(7.0, rel=1e-2)


def test_gap_to_the_largest() -> None:
    """The exponent of a gap is that of the law, though gaps to a finite size fall faster."""
    n = np.array([10.0, 20.0, 40.0, 80.0])
    gap = 3 * (n[:-1] ** -0.8 - 80**-0.8)

    assert fit_gap(n, gap[None])[0] == pytest.approx(0.8, rel=1e-3)


@pytest.mark.parametrize(
    ("exponents", "expected"),
    [
        ([0.5, 0.4, 0.6], (0.5, 0.41, 0.59)),
        ([0.05, 0.05, 0.05], (0.05, 0.0, 0.05)),
        ([5.0, 1.0, 5.0], (5.0, 1.4, np.inf)),
        ([0.5, *[0.05] * 20, *[5.0] * 20], (np.nan, 0.0, np.inf)),
    ],
)
def test_ends_of_the_grid_are_no_exponents(exponents: list[float], expected: tuple[float, ...]) -> None:
    """A bound there is none, and where both bounds are there, the exponent is undetermined."""
    found = exponent_interval(np.clip(exponents, EXPONENTS[0], EXPONENTS[-1]))

    assert expected == pytest.approx(found, rel=0.02, nan_ok=True)


@pytest.mark.parametrize(
    ("frame", "error", "value"),
    [
        (bowls(sizes=(16, 32)), DiagnosticError, "2 along 'width'"),
        (bowls().drop(columns="lr"), DiagnosticError, "'lr'"),
        (bowls().assign(lr=0.1), DiagnosticError, "0.1"),
        (bowls().assign(loss=np.nan), NoRunsError, ""),
        (bowls().assign(loss="n/a"), DiagnosticError, "'n/a'"),
        (bowls().assign(width=-1), DiagnosticError, "-1"),
        (bowls().query("lr < 0.003"), DiagnosticError, "Only 0"),
        (bowls().head(0), NoRunsError, ""),
    ],
)
def test_bad_input_is_named(frame: pd.DataFrame, error: type[TransferError], value: str) -> None:
    """Each mistake has an error that names the value at fault."""
    with pytest.raises(error) as caught:
        rates_of(frame)

    assert value in str(caught.value)
