"""Small models that the parametrization has to understand, none of them the reference transformer."""

import torch
import torch.nn.functional as F
from torch import nn

from transfer_bo.parametrization.anatomy import Anatomy, dissect
from transfer_bo.parametrization.base_model import BaseModel
from transfer_bo.scale import Scale

VOCAB = 11
HEAD = 4


class Attention(nn.Module):
    """Grouped-query attention with biases; norms registered after the last layer, as some models do."""

    def __init__(self, width: int, qk_norm: bool) -> None:
        super().__init__()
        self.kv = width // 2
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, self.kv)
        self.v = nn.Linear(width, self.kv)
        self.o = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(HEAD) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(HEAD) if qk_norm else nn.Identity()

    def forward(self, x):
        """Same shape."""
        heads = (*x.shape[:2], -1, HEAD)
        q = self.q_norm(self.q(x).view(heads)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(heads)).transpose(1, 2).repeat_interleave(2, 1)
        v = self.v(x).view(heads).transpose(1, 2).repeat_interleave(2, 1)
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Gated, with an optional norm on its output."""

    def __init__(self, width: int, post_norm: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 3 * width, bias=False)
        self.up = nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width)
        self.post = nn.RMSNorm(width) if post_norm else nn.Identity()

    def forward(self, x):
        """Same shape."""
        return self.post(self.down(F.silu(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    """Pre-norm."""

    def __init__(self, width: int, **options: bool) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width)
        self.attn = Attention(width, options["qk_norm"])
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, options["post_norm"])

    def forward(self, x):
        """Same shape."""
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """Decoder-only transformer with biases everywhere but on the gate."""

    def __init__(
        self, scale: Scale, *, qk_norm: bool = True, post_norm: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, scale.width)
        self.embedding_norm = nn.LayerNorm(scale.width)
        self.blocks = nn.ModuleList(
            Block(scale.width, qk_norm=qk_norm, post_norm=post_norm)
            for _ in range(scale.depth if "depth" in scale else 2)
        )
        self.final_norm = nn.LayerNorm(scale.width)
        self.unembedding = nn.Linear(scale.width, VOCAB, bias=bias)
        self.register_buffer("steps", torch.arange(3.0))

    def forward(self, tokens):
        """Logits."""
        x = self.embedding_norm(self.embedding(tokens))
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.final_norm(x))


def dissect_at(build, base, target, roles=None, inputs=None) -> Anatomy:
    """The tensors of a model at a target."""
    return dissect(BaseModel(build, base, inputs), target, roles)


def tokens() -> torch.Tensor:
    """A batch of two sequences."""
    return torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))


def train(model, optimizer, steps, clip):
    """Train on one batch; the losses, before each step and after the last."""
    batch = tokens()
    losses = []
    for _ in range(steps):
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        clip(model)
        optimizer.step()
    return [*losses, F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).item()]
