"""The reference transformer in unit scaling, for u-muP (arXiv:2407.17465).

Weights start with standard deviation 1, and every operation has a constant multiplier such that activations
have a mean square of about 1 at the start, whatever the width, depth and vocabulary. What is tuned are
multipliers at points where the function is not homogeneous, each meant to be independent of the others
(`UnitMultipliers`). Under the rule `u_mup` the learning rate of a matrix is in proportion to fan_in^-1/2.

Differences from the paper: gradients are not scaled apart from activations, which matters for 8-bit formats
only, and not to Adam; the outputs of attention are averages of values, and so smaller than 1. Norms have no
gains.

Symbols:
    L: Number of blocks.
    f: A residual branch; x ← x + a f(norm(x)), from an embedding of size 1. The paper's running residual
    scheme
        is this function, up to a common factor that the final norm removes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer_bo.errors import TrainingError
from transfer_bo.scale import Scale
from transfer_bo.training.model import rope_tables, rotate

__all__ = ["UnitMultipliers", "UnitTransformer", "build_unit_transformer", "unit_transformer"]

HEAD_SIZE = 16
MLP_RATIO = 4
ROPE_BASE = 10_000.0
NORM_EPS = 1e-6


@dataclass(frozen=True)
class UnitMultipliers:
    """The HPs of u-muP beside the learning rate, each positive and 1 by default.

    Raises:
        TrainingError: for a multiplier that is not positive and finite.
    """

    ffn_act: float = 1.0
    """α_ffn-act: on the input of the MLP's activation."""
    attn_softmax: float = 1.0
    """α_attn-softmax: on the logits of attention."""
    residual: float = 1.0
    """α_res: on both residual branches."""
    attn_ratio: float = 1.0
    """α_res-attn-ratio: of the attention branch to the MLP branch, at a constant sum of squares."""
    loss_softmax: float = 1.0
    """α_loss-softmax: on the logits of the output."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise TrainingError(
                    f"The multiplier {name} is {value!r}; set it to a positive finite number."
                )

    def forward(self) -> dict[str, float]:
        """Those that are searched as HPs `forward.<name>`: all but α_res, which is the HP `residual`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "residual"}

    def branches(self, depth: int) -> tuple[float, float]:
        """a of the attention and of the MLP branch, for a number of blocks."""
        mlp = self.residual * float(np.sqrt(2 / (1 + self.attn_ratio**2) / depth))
        return self.attn_ratio * mlp, mlp


class UnitLinear(nn.Linear):
    """A linear layer whose output is divided by √fan_in, or that of a readout by its fan-in."""

    def __init__(self, n_in: int, n_out: int, *, is_readout: bool = False) -> None:
        super().__init__(n_in, n_out, bias=False)
        self.divisor = float(n_in) if is_readout else float(n_in) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) / self.divisor


class UnitAttention(nn.Module):
    """Causal multi-head attention with logits q·k / K, as muP needs without norms on queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = UnitLinear(width, width)
        self.k = UnitLinear(width, width)
        self.v = UnitLinear(width, width)
        self.o = UnitLinear(width, width)
        self.scale = 1 / HEAD_SIZE

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, HEAD_SIZE)
        q_BHTK, k_BHTK, v_BHTK = (f(x_BTD).view(heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        q_BHTK, k_BHTK = rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BHTK, cos_TK, sin_TK)
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=self.scale)
        out: Tensor = self.o(y_BHTK.transpose(1, 2).flatten(2))
        return out


class UnitMLP(nn.Module):
    """Up, GELU divided by its root mean square on normal inputs, down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = UnitLinear(width, MLP_RATIO * width)
        self.down = UnitLinear(MLP_RATIO * width, width)
        self.multiplier = 1.0
        self.divisor = _rms_of_gelu(1.0)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.multiplier * self.up(x_BTD)) / self.divisor)
        return out


def _rms_of_gelu(multiplier: float) -> float:
    """Root mean square of GELU(multiplier · z) for a standard normal z, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    with torch.device("cpu"):
        values = F.gelu(torch.from_numpy(multiplier * nodes)).numpy()
    return float(np.sqrt((weights * values**2).sum() / weights.sum()))


class UnitBlock(nn.Module):
    """Two residual branches with norms before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = UnitAttention(width)
        self.mlp = UnitMLP(width)
        self.set_multipliers(UnitMultipliers(), depth=1)

    def set_multipliers(self, multipliers: UnitMultipliers, depth: int) -> None:
        """Set all multipliers of a block, given the number of blocks."""
        self.attn_multiplier, self.mlp_multiplier = multipliers.branches(depth)
        self.attn.scale = multipliers.attn_softmax / HEAD_SIZE
        self.mlp.multiplier = multipliers.ffn_act
        self.mlp.divisor = _rms_of_gelu(multipliers.ffn_act)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn_multiplier * self.attn(_norm(x_BTD), cos_TK, sin_TK)
        out: Tensor = x_BTD + self.mlp_multiplier * self.mlp(_norm(x_BTD))
        return out


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


class UnitTransformer(nn.Module):
    """Tokens (B x T, integers) to logits (B x T x V)."""

    def __init__(self, width: int, depth: int, vocab_size: int, multipliers: UnitMultipliers) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(UnitBlock(width) for _ in range(depth))
        self.unembedding = UnitLinear(width, vocab_size, is_readout=True)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_()
        self._set(multipliers)

    def _set(self, multipliers: UnitMultipliers) -> None:
        self._multipliers = multipliers
        self.loss_multiplier = multipliers.loss_softmax
        for block in self.blocks:
            assert isinstance(block, UnitBlock)
            block.set_multipliers(multipliers, len(self.blocks))

    @property
    def multipliers(self) -> dict[str, float]:
        """The multipliers that are searched as HPs `forward.<name>`, as they are set."""
        return self._multipliers.forward()

    def set_multipliers(self, values: Mapping[str, float]) -> None:
        """Set multipliers by name; the others stay."""
        self._set(replace(self._multipliers, **values))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token at every position: B x T -> B x T x V."""
        x_BTD = self.embedding(tokens_BT)
        cos_TK, sin_TK = rope_tables(tokens_BT.size(1), HEAD_SIZE, ROPE_BASE, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TK, sin_TK)
        logits_BTV: Tensor = self.loss_multiplier * self.unembedding(_norm(x_BTD))
        return logits_BTV


def build_unit_transformer(multipliers: UnitMultipliers | None = None) -> Callable[[Scale], UnitTransformer]:
    """The function that builds a unit-scaled transformer at a scale, for text read as bytes.

    Args:
        multipliers: HPs of u-muP; all 1 if not given.
    """

    def build(scale: Scale) -> UnitTransformer:
        if scale.width % HEAD_SIZE:
            raise TrainingError(
                f"width = {scale.width} is not a multiple of the head size {HEAD_SIZE}; make it one."
            )
        return UnitTransformer(int(scale.width), int(scale.depth), 256, multipliers or UnitMultipliers())

    return build


def unit_transformer(scale: Scale) -> UnitTransformer:
    """The unit-scaled transformer at a scale with all multipliers 1, for `model.build` of a study file."""
    return build_unit_transformer()(scale)
