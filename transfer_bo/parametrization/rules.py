"""What a rule of hyperparameter transfer is: a table of exponents. The tables themselves are in `tables`.

A rule states how each quantity of a tensor (variance of its initial values, learning rate, ε, weight decay,
1-β, multiplier in the forward pass) is multiplied when a model grows from the base to the target. Each entry
is a product of powers of ratios target/base.

Symbols:
    m_N: Ratio of widths; of a weight, of its fan-in.
    m_out: Ratio of fan-outs of a weight.
    m_L: Ratio of depths (numbers of blocks).
    m_B: Ratio of batch sizes (tokens per step).
    m_D: Ratio of tokens in the whole run.
    m_P: Ratio of parameters in the whole model.
    m_r: Ratio of ranks of adapters.
    α: Exponent of the residual multiplier m_L^-α; exponents of m_L are affine in it.
    β: Decay rate of Adam's moving averages, β1 of the gradient and β2 of its square.
    ε: Adam's term in the denominator.
    λ: Weight decay of the optimizer. With AdamW, SGD, Muon and Adafactor a step shrinks a weight by lr·λ.
    θ: Multiplier that is moved from the forward pass into the tensor (`Symmetry`).
    A, B, C: Of one tensor, the multiplier in the forward pass, the standard deviation of the initial values,
        and the learning rate: the abc of abc-parametrizations.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from transfer_bo.errors import ParametrizationError

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
    """What a tensor does in its model: the rows of a rule's table.

    "Grows" means with the width. A norm's bias has the role of its gain.
    """

    INPUT_EMBEDDING = "input_embedding"
    """Inputs of a fixed size to the width, outside the blocks: token embedding, class token, patches, the
    first layer of an MLP or a ConvNet."""
    POSITION_EMBEDDING = "position_embedding"
    """A vector of the width for each position, looked up or added whatever the input at the position is."""
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
    ADAPTER_DOWN = "adapter_down"
    """Beside a frozen weight: width to the rank, which is an axis of the scale; A of LoRA."""
    ADAPTER_UP = "adapter_up"
    """Beside a frozen weight: the rank to the width; B of LoRA."""
    MODULATION = "modulation"
    """Changes a frozen weight by a share of it: a reflection's vector, a factor of its elements."""
    HIDDEN_BIAS = "hidden_bias"
    """Bias of a hidden layer, in a block: one number per output, and the outputs grow."""
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
    """Bias of the unembedding: one number per output, and the outputs do not grow."""
    FIXED = "fixed"
    """Outside the blocks, and nothing about it grows."""
    UNTRAINED = "untrained"
    """Gets no gradient and is set by other means, such as a bias that balances the load of experts: it is in
    no parameter group, and no rule needs a row for it."""


@dataclass(frozen=True)
class Ratios:
    """How much larger the target is than the base, along each axis; each positive."""

    width: float = 1.0
    depth: float = 1.0
    batch: float = 1.0
    tokens: float = 1.0
    fan_out: float = 1.0
    parameters: float = 1.0
    rank: float = 1.0


@dataclass(frozen=True)
class Power:
    """A product of powers of the ratios, with m_L to the power of depth + depth_alpha·α.

    m_N^width · m_out^fan_out · m_B^batch · m_D^tokens · m_P^parameters · m_r^rank besides.
    """

    width: float = 0.0
    depth: float = 0.0
    depth_alpha: float = 0.0
    batch: float = 0.0
    tokens: float = 0.0
    fan_out: float = 0.0
    parameters: float = 0.0
    rank: float = 0.0

    def __mul__(self, other: Power) -> Power:
        return Power(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __pow__(self, exponent: float) -> Power:
        return Power(*(getattr(self, f.name) * exponent for f in fields(self)))

    def at(self, m: Ratios, alpha: float) -> float:
        """The number that this entry is at the ratios `m`; exactly 1 where they are 1."""
        depth_exponent = self.depth + self.depth_alpha * alpha
        value = float(m.width**self.width * m.depth**depth_exponent)
        value *= float(m.batch**self.batch * m.tokens**self.tokens)
        return value * float(m.fan_out**self.fan_out * m.parameters**self.parameters * m.rank**self.rank)


ONE = Power()


@dataclass(frozen=True)
class RoleExponents:
    """How the quantities of a tensor with one role scale: a row of a rule's table."""

    init_var: Power = ONE
    lr: Power = ONE
    eps: Power = ONE
    weight_decay: Power = ONE
    forward: Power = ONE


@dataclass(frozen=True)
class ScalingFactors:
    """The factors on one tensor's settings at a scale, relative to the base."""

    init_std: float = 1.0
    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0
    one_minus_beta: float = 1.0
    forward: float = 1.0


@dataclass(frozen=True)
class Symmetry:
    """Exponents of θ that leave training unchanged when a tensor's forward multiplier A becomes A/θ.

    Lemma J.1 of arXiv:2203.03466, extended to ε and λ: training is the same with

        (A, B, C, ε, λ)  and  (A/θ, B·θ^init_std, C·θ^lr, ε·θ^eps, λ·θ^weight_decay)

    The gradient is divided by θ.
    """

    lr: float
    eps: float
    weight_decay: float
    init_std: float = 1.0

    def fold(self, factors: ScalingFactors, theta: float) -> ScalingFactors:
        """`factors` with a multiplier θ moved from the forward pass into the tensor itself."""
        return ScalingFactors(
            init_std=factors.init_std * theta**self.init_std,
            lr=factors.lr * theta**self.lr,
            eps=factors.eps * theta**self.eps,
            weight_decay=factors.weight_decay * theta**self.weight_decay,
            one_minus_beta=factors.one_minus_beta,
            forward=factors.forward,
        )

    def move(self, exponents: RoleExponents, multiplier: Power) -> RoleExponents:
        """The equivalent exponents with `multiplier` added to the forward pass: `fold` with θ its inverse."""
        return RoleExponents(
            init_var=exponents.init_var * multiplier ** (-2 * self.init_std),
            lr=exponents.lr * multiplier**-self.lr,
            eps=exponents.eps * multiplier**-self.eps,
            weight_decay=exponents.weight_decay * multiplier**-self.weight_decay,
            forward=exponents.forward * multiplier,
        )


# With g the gradient and v the average of its square: Adam and AdamW step by g/√v, which does not depend on
# θ; SGD by g, which becomes g/θ; Muon by an orthogonalised g; SOAP by Adam's step in rotated coordinates.
# Shampoo with powers -1/4 steps by g/√(g²), and adds ε to squares of gradients. Adafactor, AdamH and MuonH
# step relative to the size of the tensor, so their learning rates have no unit. Adam and SGD add the weight
# decay to the gradient.
SYMMETRIES: Mapping[str, Symmetry] = {
    "adamw": Symmetry(lr=1, eps=-1, weight_decay=-1),
    "adam": Symmetry(lr=1, eps=-1, weight_decay=-2),
    "sgd": Symmetry(lr=2, eps=0, weight_decay=-2),
    "muon": Symmetry(lr=1, eps=-1, weight_decay=-1),
    "adafactor": Symmetry(lr=0, eps=-1, weight_decay=0),
    "soap": Symmetry(lr=1, eps=-1, weight_decay=-1),
    "shampoo": Symmetry(lr=1, eps=-2, weight_decay=-1),
    "adamh": Symmetry(lr=0, eps=-1, weight_decay=0),
    "muonh": Symmetry(lr=0, eps=-1, weight_decay=0),
}

BETAS = ("linear", "half_life", "fixed")
"""The values of `Rule.betas`."""

MATRIX_SOURCES: Mapping[str, str] = {
    "muon": "2512.05620, Muon",
    "soap": "2512.05620, SOAP on both sides",
    "shampoo": "2512.05620, Shampoo with powers -1/4",
    "shampoo_half": "2512.05620, Shampoo with powers -1/2",
    "adamh": "2606.16899, width and depth derived",
    "muonh": "2603.28743",
}
"""Where the row of each optimizer of matrices is published."""

AT_ALPHA_1 = frozenset({"muon", "soap", "shampoo", "shampoo_half"})
"""Optimizers of matrices whose rows are stated for α = 1 only."""


@dataclass(frozen=True)
class Rule:
    """A rule: a table with a row of exponents per role, and what holds for every tensor."""

    name: str
    """Name in `tables.RULES`."""
    source: str
    """Where the exponents are published (arXiv numbers)."""
    rows: Mapping[Role, RoleExponents]
    """Exponents by role, in the form that has the multipliers `RoleExponents.forward` and `residual` in the
    forward pass."""
    residual: Power
    """Multiplier of a residual branch: x + residual·F(x)."""
    optimizer: str = "adamw"
    """Name in `optimizers.OPTIMIZERS`, or of an optimizer that torch does not have."""
    matrices: str | None = None
    """Optimizer of two-dimensional hidden weights, where it is another one."""
    every: RoleExponents = field(default_factory=RoleExponents)
    """Exponents that multiply every row: the dependence on batch and duration."""
    one_minus_beta: Power = ONE
    """How 1-β scales, alike for every tensor."""
    betas: str = "linear"
    """How 1-β follows `one_minus_beta`: "linear" as printed in 2512.22382, with a guard; "half_life", where
    the half-life of the average in tokens is kept exactly; "fixed", where β stays."""
    keeps_beta1: bool = False
    """Whether β1 stays, whatever `betas` is (2512.22382 and 2205.10287 scale it, others do not)."""
    independent_weight_decay: bool = False
    """Whether the HP `weight_decay` is lr·λ, the share by which a step shrinks a weight, instead of λ. Both
    scale alike; they differ in whether tuning lr changes the shrinkage."""
    alpha_range: tuple[float, float] = (0.5, 1.0)
    """Values of α for which the rule is stated."""
    derived: frozenset[Role] = frozenset()
    """Roles whose exponents are not printed in the source, but follow from its reasoning."""
    parametrization: str = ""
    """Name of the rule that has the same parametrization for AdamW, if this is not it: a study file names
    that one and the optimizer."""
    matrix_rows: Mapping[str, RoleExponents] = field(default_factory=dict)
    """Row of two-dimensional hidden weights by optimizer, for those that take nothing else."""

    def __post_init__(self) -> None:
        """Refuse an unknown value of `betas`.

        Raises:
            ParametrizationError: if `betas` is none of `BETAS`.
        """
        if self.betas not in BETAS:
            raise ParametrizationError(
                f"Rule {self.name!r} has betas = {self.betas!r}; use one of {', '.join(BETAS)}."
            )

    @property
    def trained_by(self) -> str:
        """The optimizer that a study file names: that of the matrices, if they have their own."""
        return self.matrices or self.optimizer

    def with_matrices(self, optimizer: str) -> Rule:
        """The rule with two-dimensional hidden weights stepped by one of `matrix_rows`."""
        return replace(
            self,
            name=f"{self.name}+{optimizer}",
            parametrization=self.parametrization or self.name,
            source=f"{self.source}; hidden matrices: {MATRIX_SOURCES[optimizer]}",
            matrices=optimizer,
            rows={**self.rows, Role.HIDDEN_WEIGHT: self.matrix_rows[optimizer]},
            alpha_range=(1.0, 1.0) if self.residual != ONE and optimizer in AT_ALPHA_1 else self.alpha_range,
            matrix_rows={},
        )

    def factors(self, role: Role, m: Ratios, alpha: float) -> ScalingFactors:
        """The factors on the settings of a tensor.

        Args:
            role: Of the tensor.
            m: Ratios target/base of the tensor and of the run.
            alpha: α.

        Raises:
            ParametrizationError: if the table has no row for the role.
        """
        if role is Role.UNTRAINED:
            return ScalingFactors(lr=0.0, weight_decay=0.0)
        if role not in self.rows:
            raise ParametrizationError(
                f"Rule {self.name!r} has no row for role {str(role)!r}; "
                f"use one of {', '.join(self.rows)} or another rule."
            )
        exponents, every = self.rows[role], self.every

        return ScalingFactors(
            init_std=float((exponents.init_var * every.init_var).at(m, alpha) ** 0.5),
            lr=(exponents.lr * every.lr).at(m, alpha),
            eps=(exponents.eps * every.eps).at(m, alpha),
            weight_decay=(exponents.weight_decay * every.weight_decay).at(m, alpha),
            one_minus_beta=self.one_minus_beta.at(m, alpha),
            forward=(exponents.forward * every.forward).at(m, alpha),
        )

    def run_factors(self, m: Ratios) -> dict[str, float]:
        """The part of the factors that all tensors share: that of batch, tokens and size of the run."""
        run = Ratios(batch=m.batch, tokens=m.tokens, parameters=m.parameters)
        factors = {kind: getattr(self.every, kind).at(run, 1.0) for kind in ("lr", "eps", "weight_decay")}
        changed = 1.0 if self.betas == "fixed" else self.one_minus_beta.at(run, 1.0)
        return factors | {"one_minus_beta1": 1.0 if self.keeps_beta1 else changed, "one_minus_beta2": changed}

    def setting(self, role: Role, m: Ratios, alpha: float) -> ScalingFactors:
        """Former name of `factors`."""
        warnings.warn("Rule.setting is called Rule.factors now.", DeprecationWarning, stacklevel=2)
        return self.factors(role, m, alpha)


def scale_one_minus_beta(one_minus_beta: float, factor: float, betas: str = "linear") -> float:
    """1-β times `factor`, guarded so that β stays inside (0, 1).

    "linear" is (1-β)·factor wherever that is below 1. Where it is not (β1 = .9 allows only factors below 10),
    and always for "half_life", the exact form 1 - β^factor is used: it keeps the half-life of the average in
    tokens and agrees with the linear form to first order. "fixed" returns 1-β.

    Args:
        one_minus_beta: 1-β at the base.
        factor: What the rule multiplies it by.
        betas: `Rule.betas`.

    Raises:
        ParametrizationError: if 1-β is not inside (0, 1), the factor is not positive, or the factor is so
            extreme that β rounds to 0 or 1.
    """
    if betas == "fixed":
        factor = 1.0
    scaled = one_minus_beta * factor
    if 0 < one_minus_beta < 1 and factor > 0:
        if scaled >= 1 or (betas == "half_life" and factor != 1):
            scaled = 1 - (1 - one_minus_beta) ** factor
        if 0 < scaled and 0 < 1 - scaled < 1:
            return scaled
    raise ParametrizationError(
        f"1-β = {one_minus_beta:g} times {factor:g} leaves no β inside (0, 1); "
        "give 1-β inside (0, 1) and a smaller batch-to-tokens ratio or multiplier."
    )
