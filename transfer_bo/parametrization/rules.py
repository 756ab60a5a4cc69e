"""The rules of hyperparameter transfer, as tables of exponents: a new rule is a new table, not new code.

A rule says how each quantity of a tensor (variance of its initial values, learning rate, ε, weight decay,
1-β, multiplier in the forward pass) is multiplied when a model grows from the base to the target. Each entry
is a product of powers of four ratios target/base:

    m_N  width     m_L  depth (blocks)     m_B  batch (tokens per step)     m_D  tokens of the whole run

α, in [1/2, 1], is the exponent of the residual multiplier m_L^-α; exponents of m_L are affine in it.
Weight decay λ is that of PyTorch's AdamW: a step shrinks a weight by lr·λ.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from transfer_bo.errors import TransferError

__all__ = [
    "COMPLETE_D_P",
    "RULES",
    "SYMMETRIES",
    "Power",
    "Ratios",
    "Role",
    "Row",
    "Rule",
    "Setting",
    "Symmetry",
    "find_rule",
    "scale_one_minus_beta",
]


class Role(enum.StrEnum):
    """What a tensor does in its model; the rows of a rule."""

    INPUT_EMBEDDING = "input_embedding"
    """Fixed inputs to the width: token and position embeddings, the first layer of an MLP, patch
    projections."""
    INPUT_BIAS = "input_bias"
    """Bias, or norm, of the input layer: before any hidden weight."""
    HIDDEN_WEIGHT = "hidden_weight"
    """Width to width."""
    HIDDEN_BIAS = "hidden_bias"
    NORM_GAIN = "norm_gain"
    """Gain or bias of a norm over the width, between hidden weights."""
    QK_NORM = "qk_norm"
    """A norm's gain inside a block whose size is fixed because heads share it."""
    FINAL_NORM = "final_norm"
    """Norm after the last hidden weight, before the unembedding."""
    UNEMBEDDING = "unembedding"
    """Width to fixed outputs: language-model head, classifier."""
    OUTPUT_BIAS = "output_bias"


@dataclass(frozen=True)
class Ratios:
    """How much larger the target is than the base, along each axis; each positive."""

    width: float = 1.0
    depth: float = 1.0
    batch: float = 1.0
    tokens: float = 1.0


@dataclass(frozen=True)
class Power:
    """m_N^width · m_L^(depth + depth_alpha·α) · m_B^batch · m_D^tokens: one entry of a table."""

    width: float = 0.0
    depth: float = 0.0
    depth_alpha: float = 0.0
    batch: float = 0.0
    tokens: float = 0.0

    def __mul__(self, other: Power) -> Power:
        return Power(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def at(self, m: Ratios, alpha: float) -> float:
        """The number that this entry is at the ratios `m`; exactly 1 where they are 1."""
        depth_exponent = self.depth + self.depth_alpha * alpha
        value = float(m.width**self.width * m.depth**depth_exponent)
        return value * float(m.batch**self.batch * m.tokens**self.tokens)


def _width(exponent: float) -> Power:
    return Power(width=exponent)


def _depth(exponent: float, alpha: float = 0.0) -> Power:
    return Power(depth=exponent, depth_alpha=alpha)


ONE = Power()


@dataclass(frozen=True)
class Row:
    """How one role's quantities scale with width and depth."""

    init_var: Power = ONE
    lr: Power = ONE
    eps: Power = ONE
    weight_decay: Power = ONE
    forward: Power = ONE


@dataclass(frozen=True)
class Setting:
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

    Adam (2203.03466, Lemma J.1, with ε and weight decay): (A, B, C, ε, λ) ~ (A/θ, Bθ, Cθ, ε/θ, λ/θ) for
    multiplier A, initial values B, learning rate C. The gradient becomes θ^-1 times what it was.
    """

    init_std: float
    lr: float
    eps: float
    weight_decay: float
    gradient: float = -1.0

    def fold(self, setting: Setting, theta: float) -> Setting:
        """`setting` with a multiplier θ moved from the forward pass into the tensor itself."""
        return Setting(
            init_std=setting.init_std * theta**self.init_std,
            lr=setting.lr * theta**self.lr,
            eps=setting.eps * theta**self.eps,
            weight_decay=setting.weight_decay * theta**self.weight_decay,
            one_minus_beta=setting.one_minus_beta,
            forward=setting.forward,
        )


SYMMETRIES: Mapping[str, Symmetry] = {
    "adamw": Symmetry(init_std=1, lr=1, eps=-1, weight_decay=-1),
}


@dataclass(frozen=True)
class Rule:
    """A rule: a row of powers per role, and what holds for every tensor.

    `rows` are in the form that has the multipliers of `Row.forward` and `residual` in the forward pass.
    `every` is the batch and duration block; it multiplies each row.
    """

    name: str
    source: str
    optimizer: str
    rows: Mapping[Role, Row]
    residual: Power
    """Multiplier of a residual branch: x + residual·F(x)."""
    every: Row = field(default_factory=Row)
    one_minus_beta: Power = ONE
    alpha_range: tuple[float, float] = (0.5, 1.0)

    def setting(self, role: Role, m: Ratios, alpha: float) -> Setting:
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
        return Setting(
            init_std=float((row.init_var * every.init_var).at(m, alpha) ** 0.5),
            lr=(row.lr * every.lr).at(m, alpha),
            eps=(row.eps * every.eps).at(m, alpha),
            weight_decay=(row.weight_decay * every.weight_decay).at(m, alpha),
            one_minus_beta=self.one_minus_beta.at(m, alpha),
            forward=(row.forward * every.forward).at(m, alpha),
        )


# 2512.22382, Table 1, column Complete(d)P, for AdamW. Two rows are not spelled in the paper and follow from
# its own: the input layer's bias is scaled as the input embedding, the output layer's as "output biases".
_INPUT = Row(eps=_width(-1))
_HIDDEN_VECTOR = Row(lr=_depth(-1, alpha=+1), eps=_width(-1) * _depth(0, alpha=-1))

COMPLETE_D_P = Rule(
    name="complete_d_p",
    source="2512.22382, Table 1",
    optimizer="adamw",
    rows={
        Role.INPUT_EMBEDDING: _INPUT,
        Role.INPUT_BIAS: _INPUT,
        Role.HIDDEN_WEIGHT: Row(
            init_var=_width(-1),
            lr=_width(-1) * _depth(-1, alpha=+1),
            eps=_width(-1) * _depth(0, alpha=-1),
            weight_decay=_width(+1),
        ),
        Role.HIDDEN_BIAS: _HIDDEN_VECTOR,
        Role.NORM_GAIN: _HIDDEN_VECTOR,
        # The gain's gradient sums over heads, whose number grows with width: the m_N^-1 of ε cancels.
        Role.QK_NORM: Row(lr=_depth(-1, alpha=+1), eps=_depth(0, alpha=-1)),
        Role.FINAL_NORM: Row(),
        Role.UNEMBEDDING: Row(init_var=_width(-2), lr=_width(-1), weight_decay=_width(+1)),
        Role.OUTPUT_BIAS: Row(),
    },
    residual=_depth(0, alpha=-1),
    every=Row(
        lr=Power(batch=+0.5, tokens=-0.5),
        eps=Power(batch=-0.5, tokens=+0.5),
        weight_decay=Power(batch=+0.5, tokens=-0.5),
    ),
    one_minus_beta=Power(batch=+1, tokens=-1),
)

RULES: Mapping[str, Rule] = {rule.name: rule for rule in (COMPLETE_D_P,)}


def find_rule(rule: str | Rule) -> Rule:
    """A rule by name; a `Rule` is returned as it is, so that a user's own table works everywhere.

    Raises:
        TransferError: for an unknown name.
    """
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise TransferError(f"Rule {rule!r} is unknown; use one of {', '.join(RULES)} or give a Rule.")
    return RULES[rule]


def scale_one_minus_beta(one_minus_beta: float, factor: float) -> float:
    """1-β times `factor`, guarded so that β stays inside (0, 1).

    The table's linear form (1-β)·factor is used wherever it stays below 1. Beyond, where it means nothing
    (β1 = .9 allows a factor below 10 only), the exact half-life form 1 - β^factor is used: it keeps the
    average's half-life in tokens and agrees with the linear form to first order.

    Raises:
        TransferError: if 1-β is not inside (0, 1) to begin with, the factor is not positive, or no number
            inside (0, 1) is left (the factor is so extreme that β rounds to 0 or 1).
    """
    scaled = one_minus_beta * factor
    if 0 < one_minus_beta < 1 and factor > 0:
        if scaled >= 1:
            scaled = 1 - (1 - one_minus_beta) ** factor
        if 0 < scaled and 0 < 1 - scaled < 1:
            return scaled
    raise TransferError(
        f"1-β = {one_minus_beta:g} times {factor:g} leaves no β inside (0, 1); "
        "give 1-β inside (0, 1) and a smaller batch-to-tokens ratio or multiplier."
    )
