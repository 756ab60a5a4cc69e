"""Your own torch model: from base hyperparameters to every tensor's settings at another size.

Run it: .venv/bin/python examples/own_model.py (a few seconds).
"""

from collections import OrderedDict

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


def build_model(scale: tb.Scale) -> nn.Module:
    """What `parametrize` needs: the model at any scale; here tokens in, logits out."""
    width, depth = int(scale.width), int(scale.depth)
    layers = {
        "embedding": nn.Embedding(256, width),
        "blocks": nn.Sequential(*[Block(width) for _ in range(depth)]),
        "final_norm": nn.LayerNorm(width),
        "unembedding": nn.Linear(width, 256, bias=False),
    }
    return nn.Sequential(OrderedDict(layers))


if __name__ == "__main__":
    base = tb.Scale(width=64, depth=2, batch=32, tokens=2e6)
    target = tb.Scale(width=512, depth=8, batch=64, tokens=2e7)
    p = tb.parametrize(build_model, base=base, target=target)
    print(p.table().to_string())

    # As found on the base; a name with a group multiplies the common value.
    hps = {"lr": 2**-7, "lr.embedding": 4.0, "weight_decay": 0.1}
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
