"""Trains one trial of a study: model, data and loss are yours to replace."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import transfer_bo as tb
from transfer_bo.runners.external_program import tell

BASE = tb.Scale(width=32, depth=2, batch=16, tokens=16_384)
"""The first rung of the study file, where its HPs are defined."""
VOCABULARY, CONTEXT = 64, 16


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Any:
        """Add the block's output to its input."""
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """The names of its modules are the groups that HPs like lr.embedding can name."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.unembedding = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Any:
        """Logits of each position (N x T x vocabulary) from tokens (N x T)."""
        return self.unembedding(self.norm(self.blocks(self.embedding(tokens))))


def build_model(scale: tb.Scale) -> nn.Module:
    """The model at a scale."""
    return Model(int(scale.width), int(scale.depth))


def main() -> None:
    """Train and report."""
    trial = json.loads(Path(sys.argv[1]).read_text())
    scale, hps = tb.Scale(trial["scale"]), trial["hps"]
    torch.manual_seed(trial["seed"])

    model = build_model(scale)
    p = tb.parametrize(build_model, base=BASE, target=scale)
    p.initialize(model, hps)
    optimizer = torch.optim.AdamW(p.param_groups(model, hps))

    steps = int(scale.tokens // (scale.batch * CONTEXT))
    for step in range(1, steps + 1):
        inputs = torch.randint(VOCABULARY, (int(scale.batch), CONTEXT))
        targets = (inputs * 7 + 3) % VOCABULARY  # a toy task
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % max(1, steps // 10) == 0:
            tell(progress=step / steps, loss=float(loss))
    tell(loss=float(loss))


if __name__ == "__main__":
    main()
