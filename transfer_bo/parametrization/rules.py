"""What a rule of hyperparameter transfer is: a table of exponents. The tables themselves are in `tables.py`.

A rule says how each quantity of a tensor (variance of its initial values, learning rate, ε, weight decay,
1-β, multiplier in the forward pass) is multiplied when a model grows from the base to the target. Each entry
is a product of powers of ratios target/base:

    m_N  width (of a weight: its fan-in)     m_out  fan-out of a weight
    m_L  depth (blocks)     m_B  batch (tokens per step)     m_D  tokens of the whole run
    m_P  parameters of the whole model

α is the exponent of the residual multiplier m_L^-α; exponents of m_L are affine in it. Weight decay λ is that
of the optimizer: for AdamW, Muon and Adafactor a step shrinks a weight by lr·λ; for SGD too.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from transfer_bo.errors import TransferError

__all__ = [
    "BETAS",
    "SYMMETRIES",
    "Power",
    "Ratios",
    "Role",
    "RoleExponents",
    "Rule",
    "ScalingFactors",
    "Symmetry",
    "scale_one_minus_beta",
]


class Role(enum.StrEnum):
    """What a tensor does in its model; the rows of a rule.

    "Grows" means with the width. A norm's bias has the role of its gain.
    """

    INPUT_EMBEDDING = "input_embedding"
    """Fixed inputs to the width, outside the blocks: token embedding, class token, patch projection, the
    first layer of an MLP or a ConvNet."""
    POSITION_EMBEDDING = "position_embedding"
    """Looked up or added by position, whatever the input is."""
    TIED_EMBEDDING = "tied_embedding"
    """Input embedding and unembedding in one tensor."""
    INPUT_BIAS = "input_bias"
    """Bias, or norm, of the input layer: before any hidden weight."""
    HIDDEN_WEIGHT = "hidden_weight"
    """Width to width."""
    CONV_KERNEL = "conv_kernel"
    """Width to width, with a window."""
    EXPERT_UP = "expert_up"
    """Width to width, of an expert: its first layer (and its gate)."""
    EXPERT_DOWN = "expert_down"
    """Width to width, of an expert: behind another layer of it."""
    ROUTER = "router"
    """In a block: width to a fixed size that goes into a softmax, sigmoid or top-k."""
    WIDE_TO_NARROW = "wide_to_narrow"
    """In a block: width to a fixed size; keys of attention with a fixed number of key heads, a low-rank
    map's first half."""
    NARROW_TO_WIDE = "narrow_to_wide"
    """In a block: a fixed size to the width; a low-rank map's second half, a depthwise convolution."""
    HIDDEN_BIAS = "hidden_bias"
    NORM_GAIN = "norm_gain"
    """Gain or bias of a norm over the width, between hidden weights; a gain per channel of a branch."""
    QK_NORM = "qk_norm"
    """A norm's gain inside a block whose size is fixed because heads share it."""
    SHARED = "shared"
    """Anything else in a block that does not grow: every head or channel uses it."""
    FINAL_NORM = "final_norm"
    """Norm after the last hidden weight, before the unembedding."""
    UNEMBEDDING = "unembedding"
    """Width to fixed outputs: language-model head, classifier."""
    OUTPUT_BIAS = "output_bias"
    FIXED = "fixed"
    """Outside the blocks, and nothing about it grows."""


@dataclass(frozen=True)
class Ratios:
    """How much larger the target is than the base, along each axis; each positive."""

    width: float = 1.0
    depth: float = 1.0
    batch: float = 1.0
    tokens: float = 1.0
    fan_out: float = 1.0
    parameters: float = 1.0


@dataclass(frozen=True)
class Power:
    """m_N^width · m_L^(depth + depth_alpha·α) · m_B^batch · m_D^tokens · m_out^fan_out · m_P^parameters."""

    width: float = 0.0
    depth: float = 0.0
    depth_alpha: float = 0.0
    batch: float = 0.0
    tokens: float = 0.0
    fan_out: float = 0.0
    parameters: float = 0.0

    def __mul__(self, other: Power) -> Power:
        return Power(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __pow__(self, exponent: float) -> Power:
        return Power(*(getattr(self, f.name) * exponent for f in fields(self)))

    def at(self, m: Ratios, alpha: float) -> float:
        """The number that this entry is at the ratios `m`; exactly 1 where they are 1."""
        depth_exponent = self.depth + self.depth_alpha * alpha
        value = float(m.width**self.width * m.depth**depth_exponent)
        value *= float(m.batch**self.batch * m.tokens**self.tokens)
        return value * float(m.fan_out**self.fan_out * m.parameters**self.parameters)


ONE = Power()


@dataclass(frozen=True)
class RoleExponents:
    """How one role's quantities scale."""

    init_var: Power = ONE
    lr: Power = ONE
    eps: Power = ONE
    weight_decay: Power = ONE
    forward: Power = ONE


@dataclass(frozen=True)
class ScalingFactors:
    """The factors one tensor's settings get at a scale, relative to the base."""

    init_std: float = 1.0
    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0
    one_minus_beta: float = 1.0
    forward: float = 1.0


@dataclass(frozen=True)
class Symmetry:
    """Exponents of θ that keep training the same when a tensor's forward multiplier A becomes A/θ.

    2203.03466, Lemma J.1, with ε and weight decay: (A, B, C, ε, λ) ~ (A/θ, Bθ, Cθ^lr, εθ^eps,
    λθ^weight_decay) for multiplier A, initial values B, learning rate C. The gradient becomes θ^-1 times what
    it was.
    """

    lr: float
    eps: float
    weight_decay: float
    init_std: float = 1.0

    def fold(self, setting: ScalingFactors, theta: float) -> ScalingFactors:
        """`setting` with a multiplier θ moved from the forward pass into the tensor itself."""
        return ScalingFactors(
            init_std=setting.init_std * theta**self.init_std,
            lr=setting.lr * theta**self.lr,
            eps=setting.eps * theta**self.eps,
            weight_decay=setting.weight_decay * theta**self.weight_decay,
            one_minus_beta=setting.one_minus_beta,
            forward=setting.forward,
        )

    def move(self, row: RoleExponents, multiplier: Power) -> RoleExponents:
        """The row in the form with `multiplier` more in the forward pass: `fold` with θ its inverse."""
        return RoleExponents(
            init_var=row.init_var * multiplier ** (-2 * self.init_std),
            lr=row.lr * multiplier**-self.lr,
            eps=row.eps * multiplier**-self.eps,
            weight_decay=row.weight_decay * multiplier**-self.weight_decay,
            forward=row.forward * multiplier,
        )


# Adam and AdamW: the update is g/√v, which does not see θ; SGD's is g, which becomes g/θ. Muon's is an
# orthogonalised g. Adafactor's is relative to the tensor's own size, so its rate is a pure number.
# The weight decays of Adam and SGD are added to the gradient.
SYMMETRIES: Mapping[str, Symmetry] = {
    "adamw": Symmetry(lr=1, eps=-1, weight_decay=-1),
    "adam": Symmetry(lr=1, eps=-1, weight_decay=-2),
    "sgd": Symmetry(lr=2, eps=0, weight_decay=-2),
    "muon": Symmetry(lr=1, eps=-1, weight_decay=-1),
    "adafactor": Symmetry(lr=0, eps=-1, weight_decay=0),
}

BETAS = ("linear", "half_life", "fixed")


@dataclass(frozen=True)
class Rule:
    """A rule: a row of powers per role, and what holds for every tensor.

    `rows` are in the form that has the multipliers of `RoleExponents.forward` and `residual` in the forward pass.
    `every` is the batch and duration block; it multiplies each row.
    """

    name: str
    source: str
    rows: Mapping[Role, RoleExponents]
    residual: Power
    """Multiplier of a residual branch: x + residual·F(x)."""
    optimizer: str = "adamw"
    matrices: str | None = None
    """Optimizer of hidden weights (two-dimensional ones), if it is another one."""
    every: RoleExponents = field(default_factory=RoleExponents)
    one_minus_beta: Power = ONE
    betas: str = "linear"
    """How 1-β follows `one_minus_beta`: "linear" as printed in 2512.22382, with a guard; "half_life", where
    the average's half-life in tokens is kept exactly; "fixed", where β stays."""
    keeps_beta1: bool = False
    """Whether β1 stays, whatever `betas` says (2512.22382 and 2205.10287 scale it, others do not)."""
    independent_weight_decay: bool = False
    """Whether the HP `weight_decay` is what a step shrinks a weight by, rather than that over the learning
    rate. The product lr·λ scales alike in both; what differs is whether tuning lr moves it."""
    alpha_range: tuple[float, float] = (0.5, 1.0)
    derived: frozenset[Role] = frozenset()
    """Roles whose row is not printed in the source, but follows from its reasoning."""

    def setting(self, role: Role, m: Ratios, alpha: float) -> ScalingFactors:
        """The factors for a tensor of this role, at these ratios.

        Raises:
            TransferError: if the table has no row for the role.
        """
        if role not in self.rows:
            raise TransferError(
                f"Rule {self.name!r} has no row for role {str(role)!r}; "
                f"use one of {', '.join(self.rows)} or another rule."
            )
        row, every = self.rows[role], self.every
        return ScalingFactors(
            init_std=float((row.init_var * every.init_var).at(m, alpha) ** 0.5),
            lr=(row.lr * every.lr).at(m, alpha),
            eps=(row.eps * every.eps).at(m, alpha),
            weight_decay=(row.weight_decay * every.weight_decay).at(m, alpha),
            one_minus_beta=self.one_minus_beta.at(m, alpha),
            forward=(row.forward * every.forward).at(m, alpha),
        )


def scale_one_minus_beta(one_minus_beta: float, factor: float, betas: str = "linear") -> float:
    """1-β times `factor`, guarded so that β stays inside (0, 1).

    "linear" is the table's (1-β)·factor, used wherever it stays below 1. Beyond, where it means nothing
    (β1 = .9 allows a factor below 10 only), and always for "half_life", the exact half-life form 1 - β^factor
    is used: it keeps the average's half-life in tokens and agrees with the linear form to first order.
    "fixed" returns 1-β.

    Raises:
        TransferError: if 1-β is not inside (0, 1) to begin with, the factor is not positive, or no number
            inside (0, 1) is left (the factor is so extreme that β rounds to 0 or 1).
    """
    if betas == "fixed":
        factor = 1.0
    scaled = one_minus_beta * factor
    if 0 < one_minus_beta < 1 and factor > 0:
        if scaled >= 1 or (betas == "half_life" and factor != 1):
            scaled = 1 - (1 - one_minus_beta) ** factor
        if 0 < scaled and 0 < 1 - scaled < 1:
            return scaled
    raise TransferError(
        f"1-β = {one_minus_beta:g} times {factor:g} leaves no β inside (0, 1); "
        "give 1-β inside (0, 1) and a smaller batch-to-tokens ratio or multiplier."
    )
