"""Synthetic problems whose truth is known: a loss over HPs and scale, drawn from a stated distribution.

The distribution is written down here and not taken from the package, so that a change of what the package
believes shows as a loss of coverage. Symbols: z = HPs in octaves from the middle of their range, s =
doublings of the axes from the base, psi = optimum, t = HPs relative to the optimum.

    ln loss = L(s) + A ln(1 + b / A) + r(z - psi(s), s) + w(s)           A = .3
    b       = e^(g + gamma s) sum_i c_i q(t_i),  q(t) = 2 (e^(kt) - kt - 1) / k^2,  t = (I + N) M (z - psi(s))
    L(s)    = l0 + ln(e + (1 - e) (omega_0 + sum_a omega_a 2^(-alpha_a s_a / zeta))^zeta)
    psi(s)  = u + B s + j(s)
    a run   = ln loss + sigma N(0, 1) + .15 excess loss N(0, 1); it diverges with logistic(b0 + a M z + m s)

    bowl        g ~ N(ln .01, 1); ln c ~ N(0, .8) for lr and batch, N(-1.5, 1.2) for others; gamma ~ N(0, .25)
                k ~ N(.4, .6) for lr, N(0, .3) for others; M adds log lr to log weight decay
                N strictly upper triangular, N(0, .3) sqrt(c_j / c_i), of lr with batch N(-.4, .3)
    optimum     u ~ N(-E[B] s_target / 2, range / 12^.5): what is known of an HP without a default is a range
                that holds the optima of all scales; B by the tables below
                j ~ N(0, tau^2), correlated over .7 doublings, ln tau ~ N(ln .2, .4)
    level       logit e ~ N(-.7, 1); ln zeta ~ N(ln .4, .5); omega = softmax N(0, .7), without omega_0 where a
                size and tokens vary; alpha ~ N(.4, .25)
                w a random walk along each axis, ln step ~ N(ln .01, .7)
    residual    r Matern-5/2 in z, lengthscale range / 2 times e^N(0, .7), squared-exponential in s with
                4 doublings; ln size ~ N(ln .004, 1.2)
    noise       ln sigma ~ N(ln .003, 1.5)
    divergence  b0 ~ N(-4, 2), a ~ N(1, .7) for lr and N(0, .5) for others, m ~ N(0, .5)

A problem in which more than half of the runs diverge is drawn again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

__all__ = ["KINDS", "Problem", "draw"]

Array = np.ndarray[Any, np.dtype[np.float64]]

HPS = {  # transform, typical value in the middle of the range
    "lr": ("log", 3e-3),
    "batch_tokens": ("log", 2.0**18),
    "weight_decay": ("log", 0.05),
    "beta2": ("one_minus", 0.99),
    "init_std": ("log", 0.02),
}
AXES = {"n_params": 2e7, "tokens": 1e9, "width": 128.0, "depth": 4.0}
AXIS_SETS = [
    *(("n_params",), ("tokens",), ("width",), ("n_params", "tokens"), ("width", "tokens")),
    *(("width", "depth"), ("width", "depth", "tokens")),
]
BASE_DRIFT = {"n_params": 0.1, "width": 0.1, "depth": 0.1, "tokens": 0.3}  # mean 0
RAW_DRIFT = {
    ("lr", "n_params"): (-0.45, 0.20),
    ("lr", "tokens"): (-0.35, 0.20),  # with a batch size among the HPs: (.16, .21)
    ("lr", "width"): (-0.67, 0.35),
    ("lr", "depth"): (-0.34, 0.35),
    ("batch_tokens", "n_params"): (0.02, 0.25),
    ("batch_tokens", "tokens"): (0.62, 0.25),
}  # anything else: (0, .3)
TRADE = {"lr": -0.1, "batch_tokens": -0.2}
"""HPs whose drifts with n_params and with tokens are correlated in raw coordinates, and by how much."""
FLATTEN, TOLERANCE = 0.3, 0.15
FEATURES = 400
"""Random Fourier features of the residual."""


@dataclass(frozen=True)
class Problem:
    """One drawn problem.

    Attributes:
        hps: names, in the order of z.
        axes: names, in the order of s.
        coordinates: "raw" or "base".
        half: half the range of each HP, octaves (d).
        cells: scales of the runs, s (cells x a); the first is the base.
        target: s of the target (a).
        optimum: psi of a scale.
        smooth: noiseless ln loss of HPs (n x d) at one scale.
        bowl: b of HPs (n x d) at one scale.
        noise: (bowl (n), rng) -> error of a run (n).
        chance: probability of divergence of HPs (n x d) at one scale.
    """

    hps: tuple[str, ...]
    axes: tuple[str, ...]
    coordinates: str
    half: Array
    cells: Array
    target: Array
    optimum: Callable[[Array], Array]
    smooth: Callable[[Array, Array], Array]
    bowl: Callable[[Array, Array], Array]
    noise: Callable[[Array, np.random.Generator], Array]
    chance: Callable[[Array, Array], Array]

    def run(self, z: Array, s: Array, rng: np.random.Generator) -> Array:
        """Losses of runs (n) with HPs z (n x d) at one scale; nan where they diverge."""
        y = self.smooth(z, s) + self.noise(self.bowl(z, s), rng)
        return np.where(rng.random(len(z)) < self.chance(z, s), np.nan, np.exp(np.minimum(y, 50.0)))

    def scale(self, s: Array) -> dict[str, float]:
        """A scale as users write it."""
        return {axis: float(AXES[axis] * 2.0**at) for axis, at in zip(self.axes, s, strict=True)}

    def values(self, z: Array) -> dict[str, Array]:
        """HPs (n x d) as users write them."""
        found = {}
        for i, name in enumerate(self.hps):
            transform, middle = HPS[name]
            power = 2.0 ** z[:, i]
            found[name] = middle * power if transform == "log" else 1 - (1 - middle) / power
        return found

    def octaves(self, name: str, value: Array) -> Array:
        """The z of an HP's values."""
        transform, middle = HPS[name]
        ratio = value / middle if transform == "log" else (1 - middle) / (1 - value)
        return np.asarray(np.log2(ratio))

    def best(self, rng: np.random.Generator) -> Array:
        """The z of least noiseless loss at the target (d), within the ranges or 3 octaves of psi."""
        psi = self.optimum(self.target)
        low, high = np.minimum(-self.half, psi - 3), np.maximum(self.half, psi + 3)
        points = np.concatenate(
            [
                psi[None],
                rng.uniform(low, high, (1500, len(psi))),
                psi + rng.normal(0, 0.5, (500, len(psi))),
            ]
        ).clip(low, high)
        order = self.smooth(points, self.target).argsort()[:4]
        found = [
            minimize(
                lambda z: float(self.smooth(z[None], self.target)[0]),
                points[i],
                method="L-BFGS-B",
                bounds=list(zip(low, high, strict=True)),
            )
            for i in order
        ]
        return np.asarray(min(found, key=lambda result: result.fun).x)

    def table(self, runs: int, rng: np.random.Generator) -> pd.DataFrame:
        """Logged runs: random HPs over their ranges, cells in turn."""
        which = rng.permutation(np.arange(runs) % len(self.cells))
        z = rng.uniform(-self.half, self.half, (runs, len(self.hps)))
        loss = np.array([self.run(z[[i]], self.cells[c], rng)[0] for i, c in enumerate(which)])
        scales = pd.DataFrame([self.scale(self.cells[c]) for c in which])
        return scales.assign(**self.values(z), loss=loss)


def draw(kind: str, rng: np.random.Generator) -> tuple[Problem, pd.DataFrame]:
    """A problem of a kind of `KINDS` and 24 to 60 logged runs of it."""
    while True:
        problem = KINDS[kind](rng)
        table = problem.table(int(rng.integers(24, 61)), rng)
        if table["loss"].isna().mean() <= 0.5:
            return problem, table


def _q(t: Array, k: Array) -> Array:
    """The asymmetric parabola; far out on its steep side it goes on as a straight line."""
    x = t * k
    k = np.where(np.abs(k) < 1e-3, 1e-3, k)
    bent = np.exp(np.minimum(x, 3.0)) + np.maximum(x - 3.0, 0) * np.exp(3.0)
    return np.where(np.abs(x) < 1e-2, t**2 * (1 + x / 3), 2 * (bent - x - 1) / k**2)


def _right(
    rng: np.random.Generator,
    *,
    shape: Callable[[Array, Array], Array] = _q,
    fewest: int = 1,
    coupling: Callable[[int], Array] | None = None,
    path: Callable[[Array, Array], Array] | None = None,
    bend: Callable[[Array], Array] = lambda s: s,
    additive: bool = False,
) -> Problem:
    """The distribution at the top; the keywords replace a piece of it."""
    axes = AXIS_SETS[rng.integers(len(AXIS_SETS))]
    d, a = int(rng.integers(fewest, 5)), len(axes)
    others = [name for name in HPS if name != "lr"]
    hps = tuple(sorted(["lr", *map(str, rng.choice(others, d - 1, replace=False))]))
    coordinates = str(rng.choice(["raw", "base"]))
    steep = np.array([name in ("lr", "batch_tokens") for name in hps])
    is_lr = np.array([name == "lr" for name in hps])
    half = rng.uniform(2.0, 4.0, d)

    cells = np.concatenate([np.zeros((1, a)), rng.uniform(0, 3, (int(rng.integers(2, 6)), a))])
    target = cells.max(0) + rng.uniform(1, 4, a)
    places = np.concatenate([cells, target[None]])

    def where(s: Array) -> int:
        return int(np.abs(places - s).sum(-1).argmin())

    mix = np.eye(d)
    if "weight_decay" in hps:
        mix[hps.index("weight_decay"), hps.index("lr")] = 1.0
    expected = np.array([_believed(hp, axes, coordinates, hps)[0] for hp in hps])
    u = rng.normal(-expected @ target / 2, 2 * half / 12**0.5)
    B = np.array([_drift(hp, axes, coordinates, hps, rng) for hp in hps])
    squared_distances = ((places[:, None] - places[None]) ** 2).sum(-1)
    half_jitter = np.linalg.cholesky(np.exp(-0.5 * squared_distances / 0.7**2) + 1e-9 * np.eye(len(places)))
    jitter = rng.lognormal(np.log(0.2), 0.4) * half_jitter @ rng.normal(size=(len(places), d))
    drift = path or (lambda B, s: B @ s)

    def optimum(s: Array) -> Array:
        return np.asarray(u + drift(B, s) + jitter[where(s)])

    g, gamma = rng.normal(np.log(0.01), 1.0), rng.normal(0, 0.25, a)
    c = np.exp(np.where(steep, rng.normal(0, 0.8, d), rng.normal(-1.5, 1.2, d)))
    k = np.where(is_lr, rng.normal(0.4, 0.6, d), rng.normal(0.0, 0.3, d))
    N = np.triu(rng.normal(0, 0.3, (d, d)), 1) if coupling is None else coupling(d)
    if coupling is None and {"lr", "batch_tokens"} <= set(hps):
        N[hps.index("batch_tokens"), hps.index("lr")] -= 0.4  # "batch_tokens" comes first
    turn = np.eye(d) + N * np.sqrt(c)[None] / np.sqrt(c)[:, None]

    def bowl(z: Array, s: Array) -> Array:
        t = (z - optimum(s)) @ (turn @ mix).T
        return np.asarray(np.exp(g + gamma @ s) * (shape(t, k) * c).sum(-1))

    l0 = rng.uniform(np.log(2.0), np.log(4.0))
    e = 1 / (1 + np.exp(-rng.normal(0.0 if additive else -0.7, 1.0)))
    short = 0 if additive or ("tokens" in axes and a > 1) else 1  # one more term: what does not vary
    omega = np.exp(rng.normal(0, 0.7, a + short))
    alpha = np.append(rng.normal(0.4, 0.25, a), np.zeros(short))
    zeta = 1.0 if additive else rng.lognormal(np.log(0.4), 0.5)

    def level(s: Array) -> float:
        doublings = np.append(bend(s), np.zeros(short))
        reducible = ((omega / omega.sum()) @ 2.0 ** (-alpha * doublings / zeta)) ** zeta
        return float(l0 + np.log(e + (1 - e) * reducible))

    walks = np.minimum(places[:, None], places[None]).sum(-1)
    walk = rng.lognormal(np.log(0.01), 0.7) * (
        np.linalg.cholesky(walks + 1e-9 * np.eye(len(places))) @ rng.normal(size=len(places))
    )
    size = rng.lognormal(np.log(0.004), 1.2)
    lengthscales = half * rng.lognormal(0.0, 0.7, d)
    # The frequencies of Matern-5/2 are Student's t with 5 degrees of freedom.
    tails = np.sqrt(5 / rng.chisquare(5, FEATURES))
    in_z = rng.normal(size=(FEATURES, d)) * tails[:, None] / lengthscales
    in_s = rng.normal(size=(FEATURES, a)) / 4.0
    phase = rng.uniform(0, 2 * np.pi, FEATURES)

    def smooth(z: Array, s: Array) -> Array:
        from_optimum = z - (u + drift(B, s))
        residual = size * np.sqrt(2 / FEATURES) * np.cos(from_optimum @ in_z.T + in_s @ s + phase).sum(-1)
        b = bowl(z, s)
        return np.asarray(level(s) + walk[where(s)] + FLATTEN * np.log1p(b / FLATTEN) + residual)

    sigma = rng.lognormal(np.log(0.003), 1.5)
    b0, m = rng.normal(-4, 2), rng.normal(0, 0.5, a)
    slope = np.where(is_lr, rng.normal(1, 0.7, d), rng.normal(0, 0.5, d))

    def noise(b: Array, rng: np.random.Generator) -> Array:
        excess_loss = FLATTEN * np.log1p(b / FLATTEN)
        return np.asarray(sigma * rng.normal(size=len(b)) + TOLERANCE * excess_loss * rng.normal(size=len(b)))

    def chance(z: Array, s: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-(b0 + z @ mix.T @ slope + m @ s))))

    return Problem(hps, axes, coordinates, half, cells, target, optimum, smooth, bowl, noise, chance)


def _believed(hp: str, axes: Sequence[str], coordinates: str, hps: tuple[str, ...]) -> tuple[Array, Array]:
    """Mean and sd of one HP's drift along the axes (each a)."""
    if coordinates == "base":
        return np.zeros(len(axes)), np.array([BASE_DRIFT[axis] for axis in axes])
    table = {**RAW_DRIFT, ("lr", "tokens"): (0.16, 0.21)} if "batch_tokens" in hps else RAW_DRIFT
    mean, sd = np.array([table.get((hp, axis), (0.0, 0.3)) for axis in axes]).T
    return mean, sd


def _drift(
    hp: str, axes: Sequence[str], coordinates: str, hps: tuple[str, ...], rng: np.random.Generator
) -> Array:
    """One HP's drift along the axes (a)."""
    mean, sd = _believed(hp, axes, coordinates, hps)
    together = np.eye(len(axes))
    if coordinates == "raw" and hp in TRADE and {"n_params", "tokens"} <= set(axes):
        i, j = axes.index("n_params"), axes.index("tokens")
        together[i, j] = together[j, i] = TRADE[hp]
    return rng.multivariate_normal(mean, together * np.outer(sd, sd))


def _heavy_noise(rng: np.random.Generator) -> Problem:
    """Student's t with 2 degrees of freedom; one run in twenty ends far above (mean 30 sigma)."""
    problem = _right(rng)
    sigma = rng.lognormal(np.log(0.003), 1.0)

    def noise(b: Array, rng: np.random.Generator) -> Array:
        odd = (rng.random(len(b)) < 0.05) * rng.exponential(30 * sigma, len(b))
        excess_loss = FLATTEN * np.log1p(b / FLATTEN)
        both = sigma * rng.standard_t(2, len(b)) + TOLERANCE * excess_loss * rng.standard_t(2, len(b))
        return np.asarray(both.clip(-1, 1) + odd)

    return dataclasses.replace(problem, noise=noise)


def _moved_cliff(rng: np.random.Generator) -> Problem:
    """Beyond an edge in lr the loss shoots up (.3 per octave) and .2 octave on every run diverges.

    The edge lies 1.5 to 3 octaves above the optimum at the base, .3 to 1.5 at the target, a line between.
    """
    problem = _right(rng)
    lr = problem.hps.index("lr")
    at_base, at_target = rng.uniform(1.5, 3.0), rng.uniform(0.3, 1.5)

    def past_the_edge(z: Array, s: Array) -> Array:
        share = s.sum() / problem.target.sum()
        edge = at_base + (at_target - at_base) * share
        return np.asarray(z[:, lr] - problem.optimum(s)[lr] - edge)

    def smooth(z: Array, s: Array) -> Array:
        wall = 0.3 * 0.1 * np.logaddexp(0, past_the_edge(z, s) / 0.1)
        return np.asarray(problem.smooth(z, s) + wall)

    def chance(z: Array, s: Array) -> Array:
        return np.where(past_the_edge(z, s) > 0.2, 1.0, 0.0)

    return dataclasses.replace(problem, smooth=smooth, chance=chance)


def _broken_law(rng: np.random.Generator) -> Problem:
    """From 3 doublings of an axis on, the loss falls with a third of the exponent."""
    return _right(rng, bend=lambda s: np.minimum(s, 3) + np.maximum(s - 3, 0) / 3)


def _additive_law(rng: np.random.Generator) -> Problem:
    """Each axis has a loss of its own: zeta = 1, nothing that does not vary, logit e ~ N(0, 1)."""
    return _right(rng, additive=True)


def _saturating_drift(rng: np.random.Generator) -> Problem:
    """Along each axis the optimum moves as 3 tanh(s / 3) instead of s."""
    return _right(rng, path=lambda B, s: np.asarray(B @ (3 * np.tanh(s / 3))))


def _interaction(rng: np.random.Generator) -> Problem:
    """Two HPs or more; each pair coupled by +-1 to +-2 (a narrow valley across the axes)."""

    def strong(d: int) -> Array:
        return np.triu(rng.uniform(1, 2, (d, d)) * rng.choice([-1.0, 1.0], (d, d)), 1)

    return _right(rng, fewest=2, coupling=strong)


KINDS: dict[str, Callable[[np.random.Generator], Problem]] = {
    "right": _right,
    "power-1.5": lambda rng: _right(
        rng, shape=lambda t, k: np.abs(t) ** 1.5 * np.exp(np.clip(k * t / 3, -1, 1))
    ),
    "quartic": lambda rng: _right(rng, shape=lambda t, k: t**4 / 4),
    "log-cosh": lambda rng: _right(rng, shape=lambda t, k: 4 * (np.logaddexp(t, -t) - np.log(2))),
    "heavy-noise": _heavy_noise,
    "moved-cliff": _moved_cliff,
    "interaction": _interaction,
    "broken-law": _broken_law,
    "additive-law": _additive_law,
    "saturating-drift": _saturating_drift,
}
"""The first is the model's own world; each other one differs from it in one respect."""
