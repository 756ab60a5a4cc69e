"""The reference transformer: decoder-only, pre-norm, QK-norm, rotary positions, fused attention.

Every tensor that a parametrization treats on its own is a module with a name of its own: embedding, q, k, v,
o, q_norm, k_norm, attn_norm, up, down, mlp_norm, final_norm, unembedding, and router in a mixture of experts.
None has a bias.

Symbols, as suffixes of names (shapes):
    B: Sequences.
    T: Positions.
    D: Width of the residual stream, D = H K.
    H: Heads.
    K: Size of a head.
    F: Hidden width of the MLP, or of each expert.
    V: Size of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer_bo.errors import ScaleError, TrainingError
from transfer_bo.scale import Scale
from transfer_bo.training.experts import MixtureOfExperts

__all__ = ["Transformer", "TransformerConfig", "build_transformer"]


_SIZES = ("width", "depth", "vocab_size", "head_size", "mlp_ratio", "top_k")
"""Sizes that every model has."""

_EXPERT_SIZES = ("experts", "expert_width")
"""Sizes that may be None."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a `Transformer`.

    Raises:
        TrainingError: for a size that is no positive whole number, an odd head size, a width that is not a
            multiple of the head size, or more experts per token than there are.
    """

    width: int
    """D: size of the residual stream."""
    depth: int
    """Number of blocks; each has two residual branches, attention and MLP."""
    vocab_size: int = 256
    """V: 256 for text read as bytes."""
    head_size: int = 16
    """K, the same at every width: wider models have more heads, and the QK-norm gains keep their shape."""
    mlp_ratio: int = 4
    """F / D."""
    experts: int | None = None
    """Experts in place of each MLP; None for none."""
    top_k: int = 1
    """Experts per token."""
    expert_width: int | None = None
    """F of each expert; None for mlp_ratio times width."""
    balance_rate: float = 0.05
    """Step of the biases that balance the load of experts, see `experts`."""
    rope_base: float = 10_000.0
    """Longest wavelength of the rotary positions, in units of 2π tokens."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in (*_SIZES, *(name for name in _EXPERT_SIZES if getattr(self, name) is not None)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise TrainingError(f"The model's {name} is {value!r}; set it to a positive whole number.")
        if self.top_k > (self.experts or 1):
            raise TrainingError(
                f"top_k = {self.top_k} is more than the {self.experts or 'no'} experts of the model; "
                "set it to at most their number."
            )
        if self.head_size % 2:
            raise TrainingError(
                f"head_size = {self.head_size} is odd, but rotary positions turn pairs; make it even."
            )
        if self.width % self.head_size:
            raise TrainingError(
                f"width = {self.width} is not a multiple of head_size = {self.head_size}; "
                f"set it to a multiple, e.g. {max(1, round(self.width / self.head_size)) * self.head_size}."
            )


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis, then multiply by a learnable gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast x may be bfloat16; one dtype for both keeps the fused kernel.
        return F.rms_norm(x, (x.size(-1),), self.weight.to(x.dtype), self.eps)


def rope_tables(length: int, head_size: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles, each T x K, on the device and in the dtype of `like`.

    Computed in every forward pass: it costs microseconds, and a model that was built on the meta device has
    no buffer without values.
    """
    half = head_size // 2
    frequencies = base ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
    angles = torch.outer(torch.arange(length, device=like.device, dtype=like.dtype), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+K/2}) by their position's angles (RoPE, arXiv:2104.09864, eq. 34).

    (a, b) -> (a cos - b sin, b cos + a sin); swapping the halves is a roll by K/2.
    """
    return x_BHTK * cos_TK + x_BHTK.roll(x_BHTK.size(-1) // 2, -1) * sin_TK


class Attention(nn.Module):
    """Causal multi-head attention with normalised queries and keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        D, K = config.width, config.head_size
        self.q = nn.Linear(D, D, bias=False)
        self.k = nn.Linear(D, D, bias=False)
        self.v = nn.Linear(D, D, bias=False)
        self.o = nn.Linear(D, D, bias=False)
        self.q_norm = RMSNorm(K, config.norm_eps)  # one gain for all heads
        self.k_norm = RMSNorm(K, config.norm_eps)
        self.head_size = K

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_size)
        q_BHTK = self.q_norm(self.q(x_BTD).view(heads)).transpose(1, 2)
        k_BHTK = self.k_norm(self.k(x_BTD).view(heads)).transpose(1, 2)
        v_BHTK = self.v(x_BTD).view(heads).transpose(1, 2)
        q_BHTK, k_BHTK = rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BHTK, cos_TK, sin_TK)
        # Scaled by K^-1/2. Head size is fixed, so muP's K^-1 would differ by a constant only.
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        out: Tensor = self.o(y_BHTK.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Up, GELU, down. ReLU² and SwiGLU of the same size are no faster on a CPU and reach the same loss."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_ratio * config.width, bias=False)
        self.down = nn.Linear(config.mlp_ratio * config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x_BTD)))
        return out


def _mixture(config: TransformerConfig, experts: int) -> MixtureOfExperts:
    hidden = config.expert_width or config.mlp_ratio * config.width
    return MixtureOfExperts(config.width, hidden, experts, config.top_k, config.balance_rate)


class Block(nn.Module):
    """x + a attn(norm(x)), then x + m mlp(norm(x)); the multipliers a and m are settings, not weights."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config) if config.experts is None else _mixture(config, config.experts)
        self.attn_multiplier = 1.0
        self.mlp_multiplier = 1.0

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        # add(x, y, alpha=c) is x + c y in one pass over memory
        attn_BTD = self.attn(self.attn_norm(x_BTD), cos_TK, sin_TK)
        x_BTD = torch.add(x_BTD, attn_BTD, alpha=self.attn_multiplier)
        return torch.add(x_BTD, self.mlp(self.mlp_norm(x_BTD)), alpha=self.mlp_multiplier)


class Transformer(nn.Module):
    """Tokens (B x T, integers) to logits (B x T x V)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.unembedding = nn.Linear(config.width, config.vocab_size, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Base initialization: gains 1, embedding std 1, every matrix std fan_in^-1/2.

        Held-out loss at width 32, depth 2, 400k bytes of text, learning rate 2^-5 (mean of 2-6 seeds of
        standard deviation .03): 2.05 as here; embedding std .5, .25, .1: 2.03, 2.11, 2.14; unembedding x .5,
        x .1, x 0: 2.05, 2.17, 2.26; o and down x .5, x 0: 2.02, 2.03. Only a small embedding or unembedding
        is clearly worse.
        """
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 1.0, generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
            elif isinstance(module, MixtureOfExperts):
                module.reset_parameters(generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token at every position: B x T -> B x T x V."""
        x_BTD = self.embedding(tokens_BT)
        cos_TK, sin_TK = rope_tables(tokens_BT.size(1), self.config.head_size, self.config.rope_base, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TK, sin_TK)
        logits_BTV: Tensor = self.unembedding(self.final_norm(x_BTD))
        return logits_BTV


def build_transformer(
    scale: Scale,
    *,
    vocab_size: int = 256,
    head_size: int = 16,
    mlp_ratio: int = 4,
    experts: int | None = None,
    top_k: int = 1,
    balance_rate: float = 0.05,
) -> Transformer:
    """The reference transformer at a scale's width and depth, and its mixture of experts if it has one.

    Axes of the scale that shape the model are width, depth, experts, top_k and expert_width; of experts and
    top_k that of the scale is used if there is one.

    Raises:
        ScaleError: if the scale has no width or depth, or a width of experts but no experts.
        TrainingError: if they are unusable sizes.
    """
    for axis in ("width", "depth"):
        if axis not in scale:
            raise ScaleError(
                f"{scale} has no axis {axis!r}; the reference transformer needs width and depth."
            )
    # A scale's whole numbers are integers; a fractional one reaches the config's check as it is.
    sizes: dict[str, Any] = {"experts": experts, "top_k": top_k}
    sizes |= {axis: scale[axis] for axis in ("experts", "top_k", "expert_width") if axis in scale}
    config = TransformerConfig(
        scale.width, scale.depth, vocab_size, head_size, mlp_ratio, balance_rate=balance_rate, **sizes
    )
    if config.experts is None and config.expert_width is not None:
        raise ScaleError(f"{scale} has a width of experts, but the model has none; give their number.")
    return Transformer(config)
