"""The priors of the surrogate, one constant a line, each with its source.

What the model takes as given has no prior, and stands where it is used: the lengthscales along scale
(`kernel.JITTER_LENGTHSCALE`, `kernel.RESIDUAL_SCALE_LENGTHSCALE`), the relative error of the bowl
(`gp.TOLERANCE`), when a run has failed (`gp.FAILED_MEDIANS`), and where the bowl flattens
(`landscape.FLATTEN`).

Units: HPs in octaves (log2), axes in doublings, losses in log (y = ln loss). A `Normal` is (mean, sd), a
`LogNormal` is (median, sd of the natural logarithm). "Weak" marks a value that leaves everything plausible
within two sd; it was chosen, not measured. Numbers such as 2512.22382 are arXiv identifiers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transfer_bo.space import is_multiplier
from transfer_bo.synonyms import axis_kind, hp_kind, without_prefix

__all__ = [
    "ASYMMETRY",
    "ASYMMETRY_OTHER",
    "CATEGORY_EFFECT_SD",
    "COUPLING",
    "COUPLING_OTHER",
    "CURVATURE",
    "CURVATURE_OTHER",
    "CURVATURE_SCALE",
    "CURVATURE_SCALE_DRIFT_SD",
    "DIVERGENCE",
    "FAR_COST_RATIO",
    "FAR_SD",
    "IRREDUCIBLE_LOGIT",
    "JITTER",
    "LAW_AXIS_SHARE_SD",
    "LAW_EXPONENT",
    "LAW_EXPONENT_OTHER",
    "LAW_FACTORS",
    "LAW_GROUP",
    "LAW_LEVEL_SD",
    "LAW_MIXING",
    "LENGTHSCALE_CATEGORY",
    "LENGTHSCALE_LOG_SD",
    "LENGTHSCALE_RANGE_SHARE",
    "LEVEL",
    "MEMORY",
    "MULTIPLIES",
    "NOISE_SD",
    "RESIDUAL",
    "SEED_RATIO",
    "SHRINKAGE_RATE_SD",
    "SOURCE_LEVEL_SD",
    "SOURCE_SHIFT_SD",
    "FeasibilityPrior",
    "LogNormal",
    "Normal",
    "drift_correlation",
    "drift_prior",
    "drift_priors",
    "is_unknown",
    "optimum_spread",
]

Normal = tuple[float, float]
LogNormal = tuple[float, float]

# The bowl

CURVATURE_SCALE: Normal = (math.log(0.01), 1.0)
"""g: ln of the common scale of the bowl's curvature, ln loss per octave² of a learning rate. Over 20 sweeps
of small models (`studies/transfer_curves`) it is .016, within a factor of 1.5; larger models are flatter."""

CURVATURE_SCALE_DRIFT_SD = 0.25
"""γ: change of g per doubling of an axis, about 0. On grids of learning rates over durations, curvature fell
about fourfold over a factor of 25, so .3 per doubling; which grids is not on record, so weak."""

CURVATURE: dict[str, Normal] = {"lr": (0.0, 0.8), "batch": (0.0, 0.8), "residual": (-0.5, 1.0)}
"""ln c_i: ln of the curvature along an HP, relative to e^g. Learning rates are what g is stated for, so 0; a
batch size is taken to be as steep, residual multipliers to be somewhat flatter. The sds let HPs differ by
factors of 5 to 7 within two of them; weak."""

CURVATURE_OTHER: Normal = (-1.5, 1.2)
"""Of other HPs (betas, eps, decay, multipliers): e^-1.5, a fifth of a learning rate's; weak. In 598 runs of
small transformers the multipliers of three learning rates have .16 to .31 of the learning rate's
(`studies/search_model/trainings.csv`)."""

OPTIMUM_SPREAD: dict[str, float] = {"lr": 1 / 4, "batch": 1 / 4}
"""How far the optimum may lie from its prior guess: sd as a share of the searched range; weak. Nobody
knows the base learning rate or batch size of a new set-up, and a range is chosen to hold it: two sd reach its
ends."""

OPTIMUM_SPREAD_OTHER = 1 / 12
"""The usual values of all the others together cost little: 79 multipliers, searched at 50M parameters, saved
a factor of 2.3 in tokens (2512.22382), about 5% of loss, so .06% each; at a curvature of .0022 per octave²
(e^-1.5 times .01, above) that is an sd of half an octave, a twelfth of the usual range."""

OPTIMUM_SPREAD_LR_MULTIPLIER = 1 / 5
"""Of multipliers of the learning rate. The ratios of 2502.19002 (embedding 10, QK 8, FFN 6, VO 4, norms 1)
have an sd of 1.2 octaves, a fifth of the usual range: learning rates of module types differ by more than what
the average over all kinds of multipliers says."""

OPTIMUM_SPREAD_WITH_EFFECT = 1 / 4
"""Of one of many HPs that the runs themselves show to have an effect (`sparsity`): where few matter, these
are further off than the average of all; weak."""

OPTIMUM_SPREAD_UNKNOWN = 12**-0.5
"""Of an HP without a usual value only the range is known: the sd of a uniform distribution."""

ASYMMETRY: dict[str, Normal] = {"lr": (0.4, 0.6)}
"""κ_i: how much steeper the bowl is above the optimum than below (1/octave). Learning rates have a cliff;
over the sweeps above κ is .2 on average with an sd of .8, the error of reading it off one curve included."""

ASYMMETRY_OTHER: Normal = (0.0, 0.3)
"""Weak, about symmetric; also of multipliers of the learning rate, as the cliff is that of the whole rate."""

COUPLING: dict[frozenset[str], Normal] = {frozenset({"lr", "batch"}): (-0.4, 0.3)}
"""N_ij: how the optimum of one HP moves with another at the same scale, -slope where both are as steep. The
best learning rate of Adam grows as √batch where gradients are noisy, less where they are not (2205.10287)."""

COUPLING_OTHER: Normal = (0.0, 0.3)
"""Weak, about uncoupled."""

CATEGORY_EFFECT_SD = 0.3
"""w: effect of a category on ln loss, about 0; weak."""

# The loss law

LAW_LEVEL_SD = 1.0
"""l0: ln loss at the base's optimum, about the best run of the scale nearest to the base; weak."""

IRREDUCIBLE_LOGIT: Normal = (-0.7, 1.0)
"""logit of e, the share of the loss that no scale removes: 9% to 72% in nine of ten cases. By Chinchilla's
law it is a half where the loss is 3.4 nats (2203.15556); smaller models have more to gain. The mean was
chosen on trainings of small transformers (`studies/LOG.md`, size and data hold each other back). Weak."""

LAW_AXIS_SHARE_SD = 0.7
"""ω: logit of the share of each axis in the reducible loss, about equal; weak."""

LAW_EXPONENT: dict[str, Normal] = {"batch": (0.0, 0.3)}
"""α_a: exponent of the loss law along an axis. More batch at the same number of tokens means fewer steps, so
its sign is open."""

LAW_EXPONENT_OTHER: Normal = (0.4, 0.25)
"""Width .52 (2512.22768), N .34 and D .28 (Chinchilla), with room."""

LAW_FACTORS = frozenset({"batch"})
"""Axes that only multiply what is reducible, and have no share of their own in it."""

LAW_GROUP: dict[str, str] = {
    "width": "size",
    "depth": "size",
    "n_params": "size",
    "experts": "size",
    "top_k": "size",
    "expert_width": "size",
    "tokens": "data",
    "data_fraction": "data",
}
"""What the axes of the loss law make more of; of any other axis, it is its own kind. Where all that vary make
more of one thing, what does not vary holds the loss back, as one more term."""

LAW_MIXING: Normal = (math.log(0.4), 0.5)
"""ln ζ: how far more of one axis makes up for less of another, 1 where each has a loss of its own
(2203.15556). (Mis)Fitting's runs have .22 (.20 to .35), Schaipp's do not tell; those of Step Law, ScaleBench
and Marin, which the prior does not rest on, .30 to .49 (`studies/priors/loss_law.py`)."""

# What the bowl does not say: hyperparameters of the kernel

JITTER: LogNormal = (0.2, 0.4)
"""τ, octaves: how far the optimum of one scale lies off the straight path. On the grids of γ, .15 to .3
(likewise); without it a drift that was learned over a fraction of an octave is extrapolated as if certain."""

RESIDUAL: LogNormal = (0.004, 1.2)
"""r, ln loss: sd of the residual; a few tenths of a percent near the optimum, open within a factor of ten."""

LEVEL: LogNormal = (0.01, 0.7)
"""l, ln loss per square root of a doubling: error of the loss law; weak."""

NOISE_SD: LogNormal = (0.003, 1.5)
"""σ, ln loss: noise of one run near the optimum. The smallest proxies have .015 (`studies/LOG.md`, noise of
small proxies), large models less."""

SEED_RATIO: LogNormal = (0.6, 0.7)
"""ρ: sd of what runs of one scale have in common if they share initial weights and data order, over that of
the rest of their noise. Small transformers: .67 at width 32, .48 at width 64 (`studies/shared_seeds`)."""

LENGTHSCALE_RANGE_SHARE = 0.5
"""ℓ of the residual along an HP: this share of its searched range, at least half an octave; weak."""

LENGTHSCALE_CATEGORY = 1.5
"""ℓ of the residual along a categorical HP, in choices; weak."""

LENGTHSCALE_LOG_SD = 0.5
"""sd of ln ℓ: within a factor of e; weak."""

SOURCE_SHIFT_SD: LogNormal = (0.5, 1.0)
"""φ, octaves: how far the optimum of a source study lies off this study's, in each HP; weak. Likewise of
runs with another learning-rate schedule: in Schaipp's logs the best learning rate rises by .3 octaves per
octave of the cooldown's share, so by one from a tenth to all, and cosine lies .7 above a fifth
(`studies/priors/fitted.csv`)."""

SOURCE_LEVEL_SD = 1.0
"""o, ln loss: another data set may well have losses e times as large."""

# Feasibility: coefficients of a logistic model


@dataclass(frozen=True)
class FeasibilityPrior:
    """Independent normal priors of the coefficients; those without a mean are about 0.

    Attributes:
        intercept: logit of infeasibility in the middle of the ranges.
        slope_lr: per octave of a learning rate.
        slope_sd: per octave of any other HP.
        category_sd: of a choice of a categorical HP.
        scale_sd: per doubling of an axis.
    """

    intercept: Normal
    slope_lr: Normal
    slope_sd: float
    category_sd: float
    scale_sd: float


DIVERGENCE = FeasibilityPrior((-4.0, 2.0), slope_lr=(1.0, 0.7), slope_sd=0.5, category_sd=2.0, scale_sd=0.5)
"""Divergence is rare: 2% in the middle of the ranges, 12% to .03% within an sd. The cliff of a learning rate
lies above. A choice may never work. Weak."""

MEMORY = FeasibilityPrior((-4.0, 2.0), slope_lr=(0.0, 1.0), slope_sd=1.0, category_sd=2.0, scale_sd=1.0)
"""Lack of memory has no cliff in the learning rate; elsewhere it is wider than divergence, because memory
grows by itself along width and batch. Weak."""

# Multipliers that lose their worth with scale

SHRINKAGE_RATE_SD = 0.1
"""η of `shrinkage`, per doubling of an axis, about 0: twice what is published. The one pair of speed-ups,
2.3 at the proxy, 1.32 ten doublings on (2512.22382), would be about .05 if gains go as the square of the
distance from 1."""

# Drift of the optimum, octaves per doubling

BASE_DRIFT_SD: dict[str, float] = {"width": 0.1, "depth": 0.1, "n_params": 0.1, "tokens": 0.3}
"""In base coordinates a parametrization claims 0. The sd is what sources disagree on: the duration exponent
of the LR is -1/2, -.3 or 0, so 0, .2 and .5 off (rms .3); width and depth are settled better (one grid step
over the whole range in 2512.22382)."""

MULTIPLIER_DRIFT_SHARE = 0.5
"""In base coordinates the sd of a multiplier's drift is this share of that: a multiplier is the ratio of two
rates, and what moves both does not move it; weak."""

BASE_DRIFT_SD_OTHER = 0.2
"""Along an axis of another kind; weak."""

RAW_DRIFT: dict[tuple[str, str], Normal] = {
    ("lr", "n_params"): (-0.45, 0.20),
    ("lr", "tokens"): (-0.35, 0.20),
    ("lr", "width"): (-0.67, 0.35),
    ("lr", "depth"): (-0.34, 0.35),
    ("lr", "batch"): (0.35, 0.21),
    ("batch", "n_params"): (0.02, 0.25),
    ("batch", "tokens"): (0.62, 0.25),
}
"""In raw coordinates by (HP kind, axis kind), N being parameters and D tokens. But for widths and depths it
is what `studies/priors/pool.py` prints by the rule in `studies/priors/README.md`: works are pooled as random
effects, and the spread is that of one more work. Each work is a row of `studies/priors/sources.csv`, with its
conditions and its weight:

    lr vs N                   -.48 (Lingle), -.40 (fitted to the logs of (Mis)Fitting), -.42 (Complete(d)P,
                              2512.22382), -.22 (Zhou, 2601.05049), -.81 (Ludziejewski, 2502.05172, mixtures
                              of experts)
    lr vs D, batch fixed      -.5 (Bjorck, 2409.19913), -.27 and 0 (fitted to the logs of Schaipp and
                              (Mis)Fitting), -.35 (Zhou), -.5 (Complete(d)P), -.51 (Power scheduler,
                              2408.13359); other optimizers: -.28, -.37 (Marin), -.56 (Filatov, 2510.03871)
    lr vs batch               .34 (von Ruette, 2512.10858), .16 (Marek), .5 (2205.10287), .62 (Filatov)
    batch vs D                .57 (Lingle), .82 (von Ruette), .38 (Power Lines, 2505.13738), .47 (Zhang),
                              .45 (Filatov)
    batch vs N                0 (Lingle, Power Lines, Zhang)
    sums of N and D           lr -.25, batch .65 (DeepSeek, 2401.02954); -.36, .70 (Porian, 2406.19146)

At a fixed batch the best lr over tokens is a hump rather than a power law ("surge" in `fitted.csv`, slopes
between +.45 and -.45), for which the mean and the spread of its slope stand here. Lingle's and Marin's
exponents are from posts and code without an arXiv number.

Widths: N grows as width² at fixed depth, so an exponent in width is twice that in N; lr ∝ 1/width is the
theory for hidden matrices under Adam, n^-1/2 what is measured with cross-entropy (2505.22491), n^-.66 to
n^-1.1 the exponents of a global rate (2407.05872). -.67 was chosen among them. Depth: N grows linearly with
depth, so half of that. An sd of .35 covers all of these."""

RAW_DRIFT_BATCH_FREE: dict[tuple[str, str], Normal] = {("lr", "tokens"): (0.16, 0.21)}
"""Instead of the above where a batch size is searched as well, so that D moves with the batch at its optimum;
likewise from `pool.py`: Lingle +.26, von Ruette +.28, Filatov -.28 (another optimizer), the sums above, and
what follows from the exponents at a fixed batch."""

RAW_DRIFT_OTHER: Normal = (0.0, 0.3)
"""Of other HPs and of multipliers, and along other axes; weak."""

RAW_DRIFT_CORRELATION: dict[tuple[str, frozenset[str]], float] = {
    ("lr", frozenset({"n_params", "tokens"})): -0.1,
    ("batch", frozenset({"n_params", "tokens"})): -0.2,
}
"""Correlation of the errors of two exponents of the same HP, from `pool.py`."""

FAR_COST_RATIO = 100.0
"""Where the target costs more times the largest run, a straight law is doubted ..."""

FAR_SD = 0.5
"""... by so many octaves per further doubling of the cost (sd), in raw coordinates. Lingle's laws from at
most 872M parameters and 1B tokens miss at 4.7B and 100B, 540 times the cost, by factors of 4 to 10, 2.6
octaves in the middle. With about an octave from the drift itself, the 90% interval there is as wide to either
side. That the best learning rate bends upwards at scale is another work's finding (2606.29158), and in
(Mis)Fitting's logs its slope over tokens changes by up to .15 per doubling (`studies/priors/fitted.csv`)."""

# Coordinates

MULTIPLIES: dict[str, str] = {"weight_decay": "lr"}
"""The bowl is closest to a sum over HPs in coordinates in which each one acts alone. A group multiplier acts
as the product with its kind's common value; weight decay acts through lr·λ, the rate of AdamW's averaging
(Wang & Aitchison 2405.13698). So log2 of these HPs is taken together with log2 of that other HP."""


def is_unknown(name: str) -> bool:
    """Whether even an expert's guess of an HP's optimum is worth little; of a group multiplier it is not."""
    return not _is_multiplier(name) and hp_kind(name) in OPTIMUM_SPREAD


def _is_multiplier(name: str) -> bool:
    """Whether an HP is a group multiplier, under whatever prefix a tracker gave it."""
    return is_multiplier(without_prefix(name))


def bowl_kind(name: str) -> str:
    """The kind by which the priors of curvature, asymmetry and coupling are looked up.

    That of a multiplier of the learning rate is not the learning rate's.
    """
    kind = hp_kind(name)
    return "lr multiplier" if kind == "lr" and _is_multiplier(name) else kind


def optimum_spread(name: str, has_default: bool) -> float:
    """Prior sd of an HP's optimum, as a share of its searched range (in z)."""
    if not has_default:
        return OPTIMUM_SPREAD_UNKNOWN
    if _is_multiplier(name):
        return OPTIMUM_SPREAD_LR_MULTIPLIER if bowl_kind(name) == "lr multiplier" else OPTIMUM_SPREAD_OTHER
    return OPTIMUM_SPREAD.get(hp_kind(name), OPTIMUM_SPREAD_OTHER)


def drift_prior(
    name: str,
    axis: str,
    coordinates: str,
    overrides: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    batch_free: bool = False,
) -> Normal:
    """Prior (mean, sd) of the drift of one HP's optimum along one axis, octaves per doubling.

    Args:
        name: the HP.
        axis: the scale axis.
        coordinates: "base" (a parametrization claims no drift) or "raw".
        overrides: the user's own, `{hp: {axis: (mean, sd)}}`.
        batch_free: whether a batch size is among the searched HPs.
    """
    if overrides and axis in overrides.get(name, {}):
        mean, sd = overrides[name][axis]
        return float(mean), float(sd)
    if coordinates == "base":
        sd = BASE_DRIFT_SD.get(axis_kind(axis), BASE_DRIFT_SD_OTHER)
        return 0.0, MULTIPLIER_DRIFT_SHARE * sd if _is_multiplier(name) else sd
    if _is_multiplier(name):  # what it multiplies drifts already
        return RAW_DRIFT_OTHER
    table = RAW_DRIFT | RAW_DRIFT_BATCH_FREE if batch_free else RAW_DRIFT
    return table.get((hp_kind(name), axis_kind(axis)), RAW_DRIFT_OTHER)


def drift_priors(
    names: Sequence[str],
    axes: Sequence[str],
    coordinates: str,
    overrides: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> list[list[Normal]]:
    """`drift_prior` of each numeric HP that is searched (rows) along each axis (columns).

    Args:
        names: the HPs.
        axes: the scale axes.
        coordinates: "base" or "raw".
        overrides: the user's own, `{hp: {axis: (mean, sd)}}`.
        kinds: HP or axis -> its kind, where its name does not tell it.
    """
    kinds, overrides = kinds or {}, overrides or {}
    called = {name: kinds.get(name, name) for name in (*names, *axes)}
    batch_free = any(hp_kind(called[name]) == "batch" for name in names)

    def prior(name: str, axis: str) -> Normal:
        own = (
            {called[name]: {called[axis]: overrides[name][axis]}} if axis in overrides.get(name, {}) else None
        )
        return drift_prior(called[name], called[axis], coordinates, own, batch_free)

    return [[prior(name, axis) for axis in axes] for name in names]


def drift_correlation(name: str, axes: Sequence[str], coordinates: str) -> list[list[float]]:
    """Prior correlation of the drifts of one HP along the axes (a x a)."""
    table = RAW_DRIFT_CORRELATION if coordinates == "raw" and not _is_multiplier(name) else {}
    return [
        [
            1.0 if i == j else table.get((hp_kind(name), frozenset({axis_kind(one), axis_kind(other)})), 0.0)
            for j, other in enumerate(axes)
        ]
        for i, one in enumerate(axes)
    ]
