"""The HP space: hyperparameter kinds x module groups, with natural transforms and defaults.

A hyperparameter (HP) is named `kind` or `kind.group`. The plain name holds the value for every tensor
(in base coordinates); a grouped name holds a *multiplier* on it for the tensors of that group. A tensor in
several groups takes the product of their multipliers (arXiv:2512.22382: value = base x type
multiplier x ...).

A group `@x` is a knot of a profile over depth: `lr.@0.5` multiplies the tensors in the middle of a stack of
blocks. x = 0 is where the first block begins, 1 where the last one ends; between knots the profile is linear
in x in the logarithm, so that it carries over to any number of blocks (2512.22382: depth multipliers,
interpolated in relative depth). Both apply: value = kind x multipliers of groups x profile(x).

Symbols:
    x        relative depth of a tensor in its stack of blocks, from 0 to 1
    β        decay rate of a moving average, as of Adam's moments
    ε        the constant in AdamW's denominator
    λ        decoupled weight decay
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from transfer_bo.errors import SearchSpaceError

__all__ = [
    "DEFAULT_RULE",
    "DEPTH",
    "GROUPINGS",
    "HP",
    "KINDS",
    "PRIORS",
    "Kind",
    "Space",
    "complete_families",
    "is_multiplier",
    "split_name",
]

DEPTH = "@"
"""Begins the group of a knot of a depth profile, e.g. "@0.5"."""

DEFAULT_RULE = "complete_d_p_token_half_life"
"""Rule that carries base HPs to another scale unless one is named.

Complete(d)P (arXiv:2512.22382), but for its betas: β1 stays, and β2 keeps its half-life in tokens. The
paper's own, 1-β ∝ batch / tokens, lengthens both averages with training: at 50 times the tokens β1 = .9
becomes .998. In runs of 4 times the tokens that cost 6% of the loss (studies/LOG.md, "Transfer curves"), and
the best β2 over batch sizes keeps its half-life in tokens (Marek et al. on small batches; Marin's sweeps and
recipes)."""


@dataclass(frozen=True)
class Kind:
    """A kind of HP: what it is when nobody sets it, and where one would search it."""

    default: float
    low: float
    high: float
    meaning: str


# Defaults: learning rate as in public muP code (2^-8), the rest as in GPT-style AdamW recipes.
KINDS: dict[str, Kind] = {
    "lr": Kind(2**-8, 2**-12, 2**-3, "AdamW learning rate"),
    "weight_decay": Kind(0.1, 1e-3, 1.0, "decoupled weight decay λ; a step shrinks weights by lr·λ"),
    "one_minus_beta1": Kind(0.1, 0.02, 0.5, "1-β1 of AdamW"),
    "one_minus_beta2": Kind(0.05, 0.002, 0.3, "1-β2 of AdamW"),
    "eps": Kind(1e-8, 1e-12, 1e-6, "ε of AdamW"),
    "init_std": Kind(1.0, 0.25, 4.0, "multiplier on the standard deviation of the initial weights"),
    "residual": Kind(1.0, 0.25, 4.0, "multiplier on a residual branch"),
    "forward": Kind(1.0, 0.25, 4.0, "multiplier at a place of the forward pass that the model names"),
}
"""Kinds of HPs by name. All are searched in log2; for β the natural coordinate is log(1-β), the logarithm of
the inverse length of the average."""

GROUP_KIND = Kind(1.0, 2**-3, 2**3, "multiplier for one module group")
"""The kind of every multiplier."""

MIN_COMPLETE = 4
"""So many multipliers of module types are taken to cover all tensors. If they do not, the mean of their
optima is wrongly held at 1; with half an octave of spread it lies a quarter of an octave off."""

LARGEST_ONE_MINUS_BETA = 0.98
"""Multipliers of 1-β are searched so far that β stays above 0 with all of them at their highest."""

# How steep the loss is along each module type relative to MLP matrices, and so how much larger its learning
# rate may be: embedding 10, QK 8, FFN 6, VO 4, norms 1 (2502.19002). Nothing is said of the unembedding.
_SHARPNESS = {"embedding": 10, "q": 8, "k": 8, "up": 6, "gate": 6, "down": 6, "v": 4, "o": 4}
_SHARPNESS |= dict.fromkeys(["q_norm", "k_norm", "attn_norm", "mlp_norm", "final_norm"], 1)
PRIORS: dict[str, dict[str, float]] = {
    "none": {},
    "sharpness": {f"lr.{module}": ratio / 6 for module, ratio in _SHARPNESS.items()},
}
"""Where multipliers are expected a priori; 1 for those not listed."""


GROUPINGS = {"types": "module_types", "branches": "branch_groups"}
"""Partitions of a model's tensors, each part with a multiplier, and where a parametrization lists them."""


class _Trial(Protocol):
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


class _Parametrization(Protocol):
    @property
    def module_types(self) -> tuple[str, ...]: ...
    @property
    def branch_groups(self) -> tuple[str, ...]: ...
    @property
    def residual_branches(self) -> tuple[str, ...]: ...
    @property
    def forward_places(self) -> tuple[str, ...]: ...


def split_name(name: str) -> tuple[str, str | None]:
    """`"lr.embedding"` -> `("lr", "embedding")`, `"lr.@0.5"` -> `("lr", "@0.5")`, `"lr"` -> `("lr", None)`.

    Raises:
        SearchSpaceError: for a kind that is not in `KINDS`.
    """
    kind, _, group = name.partition(".")
    if kind not in KINDS:
        raise SearchSpaceError(f"HP {name!r}: {kind!r} is no known kind; use one of {', '.join(KINDS)}.")
    return kind, group or None


def is_multiplier(name: str) -> bool:
    """Whether an HP multiplies a known kind for a group of tensors; a run that does not have it had 1."""
    kind, _, group = name.partition(".")
    return bool(group) and kind in KINDS


def complete_families(names: Iterable[str]) -> list[list[str]]:
    """Groups of multipliers that together cover all tensors of a kind whose common value is among the names.

    The knots of a depth profile always do; multipliers of module types do if there are `MIN_COMPLETE`.

    Args:
        names: the searched HPs.
    """
    names = list(names)
    families: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        kind, _, group = name.partition(".")
        if is_multiplier(name) and kind in names:
            families.setdefault((kind, group.startswith(DEPTH)), []).append(name)
    return [
        members
        for (_, is_profile), members in families.items()
        if len(members) >= (2 if is_profile else MIN_COMPLETE)
    ]


@dataclass(frozen=True)
class HP:
    """One searched HP: `low <= value <= high`, searched in log2, `default` when nothing is known."""

    name: str
    low: float
    high: float
    default: float

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            SearchSpaceError: if 0 < low <= default <= high, low < high does not hold.
        """
        split_name(self.name)
        if not 0 < self.low < self.high:
            raise SearchSpaceError(
                f"HP {self.name!r}: low = {self.low!r}, high = {self.high!r}; give 0 < low < high."
            )
        if not self.low <= self.default <= self.high:
            raise SearchSpaceError(
                f"HP {self.name!r}: default = {self.default!r} lies outside "
                f"[{self.low!r}, {self.high!r}]; move it inside."
            )

    @classmethod
    def of(
        cls, name: str, low: float | None = None, high: float | None = None, default: float | None = None
    ) -> HP:
        """An HP with what is not given taken from the table of kinds (clipped into the range)."""
        kind, group = split_name(name)
        known = KINDS[kind] if group is None else GROUP_KIND
        low = known.low if low is None else low
        high = known.high if high is None else high
        return cls(name, low, high, min(max(known.default, low), high) if default is None else default)


class Space:
    """The HPs of a study, by name, in order.

    Raises:
        SearchSpaceError: for no HP, or the same name twice.
    """

    def __init__(self, hps: Iterable[HP]) -> None:
        self.hps: dict[str, HP] = {}
        for hp in hps:
            if hp.name in self.hps:
                raise SearchSpaceError(f"HP {hp.name!r} is given twice; give it once.")
            self.hps[hp.name] = hp
        if not self.hps:
            raise SearchSpaceError("The space holds no HP; give at least one, e.g. lr.")

    def __repr__(self) -> str:
        return f"Space({list(self.hps.values())!r})"

    @classmethod
    def from_table(cls, table: Mapping[str, Mapping[str, float]]) -> Space:
        """From `{"lr": {"low": .., "high": .., "default": ..}, "lr.embedding": {}, ...}`."""
        return cls(HP.of(name, **bounds) for name, bounds in table.items())

    @classmethod
    def per_module(
        cls,
        parametrization: _Parametrization,
        kinds: Iterable[str],
        depth_knots: int = 0,
        groups: str = "types",
    ) -> Space:
        """Each kind once for all tensors, and a multiplier of it for each group of a model's tensors.

        `residual` and `forward` have no common value: they get one multiplier per residual branch type, and
        per place of the forward pass.

        Args:
            parametrization: the parametrization of the model.
            kinds: names in `KINDS`.
            depth_knots: number of knots of each kind's profile over depth, evenly spaced from 0 to 1; 0 for
                no profile.
                Groups and profile overlap: a profile that is the same everywhere is one of `kind` itself.
            groups: a name in `GROUPINGS`: "types" for the module types, or "branches" for fewer groups, which
                are attention, MLP, norms and each layer outside of the blocks.

        Raises:
            SearchSpaceError: for a number of knots that makes no profile, an unknown kind or grouping, or a
                string of kinds.
        """
        if groups not in GROUPINGS:
            known = " or ".join(map(repr, GROUPINGS))
            raise SearchSpaceError(f"groups = {groups!r} is no known grouping; use {known}.")
        if isinstance(kinds, str):
            raise SearchSpaceError(f"kinds = {kinds!r} is a string; give a list, e.g. kinds=[{kinds!r}].")
        if depth_knots < 0 or depth_knots == 1:
            raise SearchSpaceError(f"depth_knots = {depth_knots}: give 0 for no depth profile, or 2 or more.")
        knots = [f"{DEPTH}{round(i / (depth_knots - 1), 3):g}" for i in range(depth_knots)]
        hps: list[HP] = []
        for kind in kinds:
            if kind == "residual":
                hps += [HP.of(f"residual.{branch}") for branch in parametrization.residual_branches]
            elif kind == "forward":  # its places have no depth
                hps += [HP.of(f"forward.{place}") for place in parametrization.forward_places]
                continue
            else:
                hps.append(HP.of(kind))
                hps += [HP.of(f"{kind}.{group}") for group in getattr(parametrization, GROUPINGS[groups])]
            hps += [HP.of(f"{kind}.{knot}") for knot in knots]
        return cls(hps)

    def with_modules(
        self,
        parametrization: _Parametrization,
        types: Iterable[str],
        depth: Iterable[str] = (),
        depth_knots: int = 2,
        prior: str = "none",
        groups: str = "types",
    ) -> Space:
        """These HPs, and multipliers per group of tensors and over depth for the kinds named.

        A multiplier that is in this space already keeps its range and default. Ranges are those of any
        multiplier, 1/8 to 8, but for 1-β, which stays below 1.

        Args:
            parametrization: the parametrization of the model.
            types: kinds with a multiplier for each group; for `residual`, for each residual branch.
            depth: kinds with a profile over depth.
            depth_knots: number of knots of each profile, evenly spaced from 0 to 1.
            prior: a name in `PRIORS`: the multipliers' defaults.
            groups: a name in `GROUPINGS`.

        Raises:
            SearchSpaceError: for an unknown kind or grouping, a number of knots that makes no profile, or a
                range of 1-β that leaves no room for multipliers.
        """
        types, depth = list(types), list(depth)
        names = list(Space.per_module(parametrization, types, groups=groups).hps) if types else []
        names = [name for name in names if "." in name]
        for kind in depth:
            profile = Space.per_module(parametrization, [kind], depth_knots).hps
            names += [name for name in profile if name.startswith(f"{kind}.{DEPTH}")]

        hps = dict(self.hps)
        for name in names:
            kind, _ = split_name(name)
            high = GROUP_KIND.high
            if kind.startswith("one_minus"):
                common = self.hps[kind].high if kind in self.hps else KINDS[kind].default
                overlapping = (kind in types) + (kind in depth)
                high = min(high, (LARGEST_ONE_MINUS_BETA / common) ** (1 / overlapping))
                if not high > 1:
                    raise SearchSpaceError(
                        f"HP {kind!r}: high = {common!r} leaves no room for multipliers, for 1-β < 1; "
                        "lower it."
                    )
            default = min(PRIORS[prior].get(name, GROUP_KIND.default), high)
            hps.setdefault(name, HP.of(name, high=high, default=default))
        return Space(hps.values())

    @property
    def defaults(self) -> dict[str, float]:
        """The documented default of every HP in the space."""
        return {hp.name: hp.default for hp in self.hps.values()}

    def suggest(self, trial: _Trial) -> dict[str, float]:
        """Ask an Optuna trial for every HP, in order."""
        return {hp.name: trial.suggest_float(hp.name, hp.low, hp.high, log=True) for hp in self.hps.values()}

    def to_json(self) -> dict[str, Any]:
        """The space as `from_table` reads it."""
        return {hp.name: {"low": hp.low, "high": hp.high, "default": hp.default} for hp in self.hps.values()}
