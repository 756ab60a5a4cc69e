"""Fast or slow transfer: the rates of arXiv:2512.22768 from a sweep over sizes, with bootstrap intervals.

Symbols (2512.22768, Definitions): φ_n(ν) the loss at size n with HP ν, ν*(n) its best value;
a_n = |φ_n* - φ_∞*| the loss gap ~ n^-α, b_n = |ν*(n) - ν*(∞)| the HP gap ~ n^-β,
c_n = |φ_∞(ν*(n)) - φ_∞*| what transfer costs ~ n^-γ. Transfer is fast when c_n = o(a_n), which is
b_n = o(√a_n), which is β > α/2. ν is in octaves (log2).

The limits are fitted along with the rates, φ_n* = φ_∞* + A n^-α and ν*(n) = ν*(∞) + D n^-β, rather than
replaced by the largest size, which would make every gap to it fall too fast. c_n is measured at the
largest size, where a gap is K (n^-γ/2 - n_max^-γ/2)². The verdict does not depend on the unit of n: taking
n² for n halves both α and β.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from transfer_bo.diagnostics.curves import Array, Optima, Sweep
from transfer_bo.diagnostics.intervals import Interval
from transfer_bo.diagnostics.laws import exponent_interval, fit_gap, fit_law, least_exponent
from transfer_bo.errors import DiagnosticError

__all__ = ["Rates", "Repair", "judge_repair", "transfer_rates"]

Verdict = Literal["fast", "slow", "jump", "undecided"]

MIN_SIZES = 3
"""A law with a limit has three unknowns."""
SLOW_BELOW = 1.25
"""Slow when 2β/α, which theory holds at 1 or more, surely lies below this: 1 itself can never be proved."""
JUMP = 1.5
"""Octaves of the optimum per doubling of the size beyond which it jumps rather than drifts: no rule of raw
learning rates moves faster than n^-1."""


@dataclass(frozen=True)
class Rates:
    """How fast an optimum settles compared with the loss, with 90% intervals.

    Attributes:
        hp: The HP that was swept.
        axis: The axis that grows.
        sizes: Values of the axis, ascending; the largest stands in for infinity in c_n.
        optimum: ν*(n) per size, in the HP's own unit.
        best_loss: φ_n* per size.
        alpha: Rate of the loss gap a_n.
        beta: Rate of the HP gap b_n.
        gamma: Rate of the transfer suboptimality c_n. A rate that the sizes do not determine is nan, as 2β/α
            then is.
        ratio: 2β/α; above 1 transfer is fast.
        drift: ν*(largest) - ν*(smallest), octaves.
        cost_share: c_n / a_n from the smallest size, with the largest size for infinity: the share of
            the gain from growing that is lost by transfer without correction.
        verdict: "fast", "slow", "jump" (two minima, or an optimum that moves too far for a law), "undecided".
        reasons: The reasons for the verdict, as sentences.
    """

    hp: str
    axis: str
    sizes: tuple[float, ...]
    optimum: tuple[Interval, ...]
    best_loss: tuple[Interval, ...]
    alpha: Interval
    beta: Interval
    gamma: Interval
    ratio: Interval
    drift: Interval
    cost_share: Interval
    verdict: Verdict
    reasons: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """A row per size: optimum and best loss, each with its interval."""
        return pd.DataFrame(
            {
                self.axis: self.sizes,
                "optimum": [i.value for i in self.optimum],
                "optimum_low": [i.low for i in self.optimum],
                "optimum_high": [i.high for i in self.optimum],
                "loss": [i.value for i in self.best_loss],
                "loss_low": [i.low for i in self.best_loss],
                "loss_high": [i.high for i in self.best_loss],
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; intervals as {"value", "low", "high"}."""
        named = ("alpha", "beta", "gamma", "ratio", "drift", "cost_share")
        return {
            "hp": self.hp,
            "axis": self.axis,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            **{name: getattr(self, name)._asdict() for name in named},
            "sizes": self.table().to_dict("records"),
        }


def transfer_rates(sweep: Sweep, axis: str = "size", draws: int = 400, seed: int = 0) -> Rates:
    """Rates a_n, b_n, c_n of a sweep and the verdict.

    Args:
        sweep: One HP swept over at least three sizes, the last may be infinite.
        axis: Name of the axis that grows, for the sentences.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        DiagnosticError: If there are fewer than three sizes.
    """
    n = sweep.sizes
    if len(n) < MIN_SIZES:
        raise DiagnosticError(
            f"Rates need at least {MIN_SIZES} sizes but the runs have {len(n)} along {axis!r}; "
            f"sweep {sweep.hp!r} at more sizes."
        )

    optima = sweep.optima(draws, seed)
    loss_law = fit_law(n, optima.loss, _weight(optima.loss))
    hp_law = fit_law(n, optima.z, _weight(optima.z))
    excess_loss = np.maximum(optima.at_largest[:, :-1] - optima.loss[:, -1:], 0.0)
    gamma = fit_gap(n, np.sqrt(excess_loss))

    gap = optima.loss[:, 0] - optima.loss[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(gap > 0, excess_loss[:, 0] / gap, np.nan)

    of_loss = least_exponent(n, optima.loss[0], _weight(optima.loss))
    of_hp = least_exponent(n, optima.z[0], _weight(optima.z))
    alpha = exponent_interval(loss_law.exponent, least=of_loss)
    beta = exponent_interval(hp_law.exponent, least=of_hp)
    ratio = _ratio(loss_law.exponent, hp_law.exponent, of_loss, of_hp)
    if np.isnan(alpha.value) or np.isnan(beta.value):
        ratio = Interval(np.nan, 0.0, np.inf)
    drift = Interval.of(optima.z[:, -1] - optima.z[:, 0])
    cost_share = Interval.of(share)
    verdict, reasons = _judge(sweep, axis, optima, ratio, drift, Interval.of(gap), cost_share)
    in_octaves = [Interval.of(optima.z[:, i]) for i in range(len(n))]

    return Rates(
        hp=sweep.hp,
        axis=axis,
        sizes=tuple(float(size) for size in n),
        optimum=tuple(Interval(*(float(sweep.dimension.backward(z)) for z in at)) for at in in_octaves),
        best_loss=tuple(Interval.of(optima.loss[:, i]) for i in range(len(n))),
        alpha=alpha,
        beta=beta,
        # c_n is a square of the optimum's distance, so that what is possible for β is so for γ / 2.
        gamma=exponent_interval(gamma, 2.0, least=of_hp),
        ratio=ratio,
        drift=drift,
        cost_share=cost_share,
        verdict=verdict,
        reasons=reasons,
    )


def _ratio(alpha: Array, beta: Array, of_loss: float, of_hp: float) -> Interval:
    """2β/α from draws of both (B), and as far as finite sizes may have biased each."""
    value, low, high = Interval.of(2 * beta / alpha)
    least, largest = 2 * of_hp / float(alpha[0]), 2 * float(beta[0]) / of_loss
    return Interval(value, min(low, least), max(high, largest))


def _weight(y: Array) -> Array | None:
    """Inverse variance of each size over the draws; equal weights where there is no noise."""
    variance = y[1:].var(0) if len(y) > 1 else np.zeros(y.shape[1])
    return None if variance.min() <= 0 else 1 / variance


def _at_end_of_curve(sweep: Sweep, optima: Optima) -> list[float]:
    """Sizes at which the fitted optimum lies at an end of the fitted curve."""
    values = map(sweep.dimension.backward, optima.z[0])
    found = [
        (size, sweep.is_determined(float(value), i))
        for i, (size, value) in enumerate(zip(sweep.sizes, values, strict=True))
    ]
    return [float(size) for size, is_determined in found if not is_determined]


def _judge(
    sweep: Sweep,
    axis: str,
    optima: Optima,
    ratio: Interval,
    drift: Interval,
    gap: Interval,
    cost_share: Interval,
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and the sentences that explain it; no rate is claimed where a law cannot hold."""
    jumps = []
    two = [f"{n:g}" for n, modes in zip(sweep.sizes, optima.modes, strict=True) if modes > 1]
    if two:
        jumps.append(
            f"At {axis} {', '.join(two)} the loss has two separate minima in {sweep.hp}, between which the "
            "optimum may jump; a learning rate per layer or group often removes one of them."
        )

    octaves = np.diff(np.log2(sweep.sizes))
    steps = np.diff(optima.z, axis=1)
    for i, doublings in enumerate(octaves):
        step = Interval.of(steps[:, i])
        surely = max(step.low, -step.high, 0.0)
        if np.isfinite(doublings) and surely > JUMP * doublings:
            jumps.append(
                f"Between {axis} {sweep.sizes[i]:g} and {sweep.sizes[i + 1]:g} the optimum of {sweep.hp} "
                f"jumps by {step.value:+.1f} octaves."
            )

    objections = []
    if edges := sorted({*sweep.at_edge(), *_at_end_of_curve(sweep, optima)}):
        objections.append(
            f"At {axis} {', '.join(f'{n:g}' for n in edges)} the best {sweep.hp} is at the end of those "
            "tried; widen the sweep there."
        )
    if gap.low <= 0:
        objections.append(f"The best loss does not surely fall from the smallest to the largest {axis}.")
    if jumps or objections:
        # An HP without effect leaps from end to end of its range, which is no jump of an optimum.
        return "undecided" if objections else "jump", (*jumps, *objections)

    if drift.holds(0.0):
        return "undecided", (
            f"The drift of {sweep.hp} cannot be distinguished from noise ({drift.text('+.2f')} octaves in "
            "all), so its rate is undetermined; copying the smallest size's optimum costs at most "
            f"{cost_share.high:.1%} of what growing gains.",
        )

    if np.isnan(ratio.value):
        return "undecided", (
            f"These sizes do not determine both rates, at which the loss and {sweep.hp} settle; "
            "more sizes or more seeds would.",
        )
    text = f"2β/α = {ratio.text()}"
    if ratio.low > 1:
        return "fast", (f"{text}, surely above 1: what transfer costs falls faster than the loss gap.",)
    if ratio.high < SLOW_BELOW:
        return "slow", (f"{text}, not above 1: what transfer costs falls no faster than the loss gap.",)
    return "undecided", (f"{text} may lie on either side of 1; more sizes or more seeds would decide it.",)


@dataclass(frozen=True)
class Repair:
    """Whether another setting, such as a learning rate per layer, repairs the transfer of an HP.

    Attributes:
        repaired: Whether the optimum jumped, or transfer was slow, before and neither is so after.
        gain: By how much the best loss at the largest common size is lower after, nats or the loss's unit.
        sentence: The same in words.
    """

    repaired: bool
    gain: Interval
    sentence: str


def judge_repair(before: Rates, after: Rates, what: str) -> Repair:
    """Compare the rates of a sweep before and after a change.

    Args:
        before: Rates of the sweep as it was.
        after: Rates with the change.
        what: What was changed, as the sentence names it: "the second layer's rate divided by 50".

    Raises:
        DiagnosticError: If the sweeps have no size in common.
    """
    common = sorted(set(before.sizes) & set(after.sizes))
    if not common:
        raise DiagnosticError(
            f"The sweeps before and after {what} have no {before.axis} in common; sweep both at the same."
        )
    old, new = (rates.best_loss[rates.sizes.index(common[-1])] for rates in (before, after))
    gain = Interval(old.value - new.value, old.low - new.high, old.high - new.low)

    was = {"jump": "the optimum jumps", "slow": "transfer is slow"}.get(before.verdict)
    is_now = {"jump": "it still jumps", "slow": "transfer is still slow"}.get(after.verdict)
    where = f"at {before.axis} {common[-1]:g} the best loss falls by {gain.text('.3g')}"
    if was is None:
        return Repair(
            False, gain, f"Nothing to repair: transfer of {before.hp} is {before.verdict}; {where}."
        )
    if is_now is not None:
        return Repair(False, gain, f"{was.capitalize()}, not repaired by {what}: {is_now}; {where}.")
    return Repair(True, gain, f"{was.capitalize()}, repaired by {what}: now {after.verdict}; {where}.")
