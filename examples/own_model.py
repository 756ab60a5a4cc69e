"""Your own torch model: from base hyperparameters to every tensor's settings at another size.

Run it: .venv/bin/python examples/own_model.py (a few seconds).
"""

import torch
from torch import nn

import transfer_bo as tb


class Block(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the branch."""
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """Tokens in, logits out."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width)
        self.unembedding = nn.Linear(width, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.final_norm(x))


def build_model(scale: tb.Scale) -> nn.Module:
    """What `parametrize` needs: the model at any scale."""
    return Model(int(scale.width), int(scale.depth))


if __name__ == "__main__":
    base = tb.Scale(width=64, depth=2, batch=32, tokens=2e6)
    target = tb.Scale(width=512, depth=8, batch=64, tokens=2e7)
    p = tb.parametrize(build_model, base=base, target=target)
    print(p.table().to_string())

    hps = {
        "lr": 2**-7,
        "lr.embedding": 4.0,
        "weight_decay": 0.1,
    }  # as found on the base; kind.group multiplies
    model = build_model(target)
    p.initialize(model, hps)
    optimizer = torch.optim.AdamW(p.param_groups(model, hps))

    tokens = torch.randint(256, (8, 33))
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        p.clip_grad_norm_(model, 1.0)
        optimizer.step()
        print(f"loss {loss.item():.3f}")
